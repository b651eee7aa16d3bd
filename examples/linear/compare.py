"""Ask a running `linear` and compare its answer with torch in this process. Exits 1 if they differ by more than 1e-5."""

import argparse
import json
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import torch

HERE = Path(__file__).parent
TOLERANCE = 1e-5


def answer_in_process(rows: torch.Tensor) -> torch.Tensor:
    """What the trained module says to `(rows, 10)` float32: `(rows, 1)` float32."""
    model = torch.nn.Linear(10, 1)
    model.load_state_dict(torch.load(HERE / "model.pth", weights_only=True))
    with torch.inference_mode():
        return model(rows)


def answer_served(url: str, rows: torch.Tensor) -> torch.Tensor:
    """The same, asked over HTTP in the Open Inference Protocol."""
    data = rows.flatten().tolist()
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": list(rows.shape), "data": data}]}
    request = Request(
        f"{url}/v2/models/linear/infer", json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urlopen(request, timeout=60) as response:
        (output,) = json.load(response)["outputs"]
    return torch.tensor(output["data"]).reshape(output["shape"])


def main() -> int:
    """Compare a fixed batch of random rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="where the model is served")
    rows = torch.rand(8, 10, generator=torch.Generator().manual_seed(1))
    served = answer_served(parser.parse_args().url, rows)
    difference = (served - answer_in_process(rows)).abs().max().item()
    print(f"linear: {len(rows)} rows, largest difference {difference:.1e}")
    return 0 if difference <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
