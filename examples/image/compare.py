"""Ask a running `image` about both photographs and compare with torch in this process. Exits 1 beyond 1e-5."""

import argparse
import base64
import json
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

HERE = Path(__file__).parent
TOLERANCE = 1e-5
PHOTOGRAPHS = ("china.jpg", "flower.jpg")
TOP_K = 5


def preprocess(file: Path) -> torch.Tensor:
    """What EfficientNet-Lite was evaluated with: shorter side to 256 bicubic, centre 224, (pixel - 127) / 128."""
    image = Image.open(file).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
    image = image.crop((left, top, left + 224, top + 224))
    return (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() - 127) / 128


def scores_in_process() -> torch.Tensor:
    """Softmax scores of both photographs, `(2, 1000)` float32."""
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(HERE / "model.pth", weights_only=True))
    with torch.inference_mode():
        return model.eval()(torch.stack([preprocess(HERE / name) for name in PHOTOGRAPHS])).softmax(dim=1)


def answer_served(url: str) -> dict[str, list]:
    """The served outputs by name: labels, scores, indices, each `(2, 5)` flattened."""
    data = [base64.b64encode((HERE / name).read_bytes()).decode() for name in PHOTOGRAPHS]
    body = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": data}]}
    request = Request(
        f"{url}/v2/models/image/infer", json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urlopen(request, timeout=60) as response:
        return {output["name"]: output["data"] for output in json.load(response)["outputs"]}


def main() -> int:
    """Compare the scores of the classes that the server names, and that they are the best ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="where the model is served")
    served = answer_served(parser.parse_args().url)
    expected = scores_in_process().topk(TOP_K, dim=1)
    indices = torch.tensor(served["indices"]).reshape(len(PHOTOGRAPHS), TOP_K)
    difference = (torch.tensor(served["scores"]).reshape(indices.shape) - expected.values).abs().max().item()
    for row, name in enumerate(PHOTOGRAPHS):
        print(f"image: {name} is {served['labels'][row * TOP_K]}, {served['scores'][row * TOP_K]:.4f}")
    same = bool((indices == expected.indices).all())
    print(f"image: the same five classes in process: {same}, largest difference {difference:.1e}")
    return 0 if same and difference <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
