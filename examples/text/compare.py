"""Ask a running `text` for sentence vectors and compare with transformers in this process. Exits 1 beyond 1e-5."""

import argparse
import json
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import torch
from transformers import AutoModel, AutoTokenizer

HERE = Path(__file__).parent
TOLERANCE = 1e-5
SENTENCES = (
    "A pod is the smallest unit that Kubernetes starts.",
    "Containers that share a network address are scheduled together.",
    "The recipe asks for two eggs and a spoon of flour.",
)


def vectors_in_process() -> torch.Tensor:
    """Mean over the real tokens, unit length: `(3, 384)` float32, as the model's own modules.json says."""
    tokenizer = AutoTokenizer.from_pretrained(HERE / "model")
    model = AutoModel.from_pretrained(HERE / "model").eval()
    tokens = tokenizer(list(SENTENCES), padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1).float()
    return torch.nn.functional.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=1)


def vectors_served(url: str) -> torch.Tensor:
    """The same, asked over HTTP in the Open Inference Protocol."""
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(SENTENCES)], "data": SENTENCES}]}
    request = Request(
        f"{url}/v2/models/text/infer", json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urlopen(request, timeout=60) as response:
        (output,) = json.load(response)["outputs"]
    return torch.tensor(output["data"]).reshape(output["shape"])


def main() -> int:
    """Compare the vectors, and show that near sentences are near."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="where the model is served")
    served = vectors_served(parser.parse_args().url)
    difference = (served - vectors_in_process()).abs().max().item()
    likeness = served @ served.T
    print(
        f"text: two sentences on Kubernetes {likeness[0, 1]:.2f} alike, one of them and the recipe {likeness[0, 2]:.2f}"
    )
    print(f"text: {len(SENTENCES)} vectors of {served.shape[1]}, largest difference {difference:.1e}")
    return 0 if difference <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
