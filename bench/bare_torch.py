"""The model without a server, in a process of its own: what the servers are compared with. Called by the other scripts.

  save WORKLOAD FOLDER            model.safetensors, and expected.npy: the answer to each input alone
  rate WORKLOAD THREADS SECONDS BATCH ...   forwards only, in the order of arrival, eager float32
  hold WORKLOAD FOLDER [forward]  imports torch, loads the weights (and calls them once), waits: the floor of memory

`rate` and `hold` print "ready" and go on when they read a line, so that several start together.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

WEIGHTS_FILE, EXPECTED_FILE = "model.safetensors", "expected.npy"
SERVERS = Path(__file__).resolve().parent / "servers"


def save(workload: str, folder: str) -> None:
    """Weights and expected answers (inputs, outputs) float32, one thread."""
    import numpy as np
    from safetensors.torch import save_file

    runner, items = make_runner(workload, 1)
    save_file(runner.model.state_dict(), Path(folder) / WEIGHTS_FILE)
    np.save(Path(folder) / EXPECTED_FILE, np.stack([runner.tensor([item])[0].numpy() for item in items]))


def rate(workload: str, threads: str, seconds: str, *batches: str) -> None:
    """Print a JSON list of items a second, one for each batch size."""
    import torch
    from bench_models import collate

    runner, items = make_runner(workload, int(threads))
    await_start()
    rates = []
    for size in map(int, batches):
        repeated = items * -(-size // len(items))
        starts = range(0, len(repeated) - size + 1, size)
        arguments = [collate(workload, repeated[start : start + size]) for start in starts]
        with torch.inference_mode():
            runner.model(*arguments[0])
            done, start_s = 0, time.perf_counter()
            while (elapsed_s := time.perf_counter() - start_s) < float(seconds):
                for tensors in arguments:  # whole passes: batches of the encoder differ in cost
                    runner.model(*tensors)
                done += size * len(arguments)
        rates.append(done / elapsed_s)
    print(json.dumps(rates), flush=True)


def hold(workload: str, folder: str, forward: str = "") -> None:
    """Import torch, load the weights the way the runtime does, stay."""
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(1)
    weights = load_file(Path(folder) / WEIGHTS_FILE)
    if forward:
        runner, items = make_runner(workload, 1)
        runner.model.load_state_dict(weights, assign=True)
        runner.tensor(items[:1])
    await_start()


def make_runner(workload: str, threads: int):
    """The seeded model, and its inputs as single items."""
    import torch
    from bench_models import Runner
    from workloads import make_inputs

    inputs = make_inputs(workload)
    return Runner(workload, threads), [x.tolist() if x.ndim == 1 else torch.from_numpy(x) for x in inputs]


def await_start() -> None:
    """Tell the parent, wait for it."""
    print("ready", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    sys.path.insert(0, str(SERVERS))
    {"save": save, "rate": rate, "hold": hold}[sys.argv[1]](*sys.argv[2:])
