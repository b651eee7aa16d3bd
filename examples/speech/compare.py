"""Ask a running `speech` and compare with torch in this process. Exits 1 if the segments differ by more than 1e-5 s.

The reference below is written from the package's own tinygrad_model.py: one window after the other, as a microphone would
deliver them, where the served class computes a whole recording at once. Segments come from the package's own function.
(The package's silero_vad.jit holds another training of the same network, so it can't be the reference for this file.)
"""

import argparse
import json
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import soundfile
import torch
from safetensors.torch import load_file
from silero_vad.utils_vad import get_speech_timestamps_from_probs
from torch.nn import functional

HERE = Path(__file__).parent
TOLERANCE = 1e-5
RATE_HERTZ = 16000
WINDOW = 512
CONTEXT = 64


def probability_of(window: torch.Tensor, weights: dict[str, torch.Tensor], state: tuple) -> tuple[float, tuple]:
    """One window with its context, `(1, 576)`, to its probability of speech and the LSTM's new state."""
    x = functional.pad(window.unsqueeze(1), (0, 64), mode="reflect")
    x = functional.conv1d(x, weights["stft_conv.weight"], stride=128)
    x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
    for layer, stride in (("conv1", 1), ("conv2", 2), ("conv3", 2), ("conv4", 1)):
        x = functional.conv1d(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"], stride=stride, padding=1).relu()
    lstm = [weights[f"lstm_cell.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    state = torch.lstm_cell(x.squeeze(-1), state, *lstm)
    x = functional.conv1d(state[0].unsqueeze(-1).relu(), weights["final_conv.weight"], weights["final_conv.bias"])
    return x.sigmoid().item(), state


def segments_in_process() -> list[tuple[float, float]]:
    """Start and end of each stretch of speech in seconds."""
    samples, rate_hertz = soundfile.read(HERE / "speech.wav", dtype="float32")
    assert rate_hertz == RATE_HERTZ, f"speech.wav has {rate_hertz} Hz; run prepare.py again"
    weights = load_file(HERE / "model.safetensors")
    waveform = functional.pad(torch.from_numpy(samples)[None], (CONTEXT, -len(samples) % WINDOW))
    state = (torch.zeros(1, 128), torch.zeros(1, 128))
    probabilities = []
    with torch.inference_mode():
        for start in range(0, waveform.shape[1] - CONTEXT, WINDOW):
            probability, state = probability_of(waveform[:, start : start + CONTEXT + WINDOW], weights, state)
            probabilities.append(probability)
    segments = get_speech_timestamps_from_probs(
        probabilities, sampling_rate=RATE_HERTZ, threshold=0.5, audio_length_samples=len(samples)
    )
    return [(segment["start"] / RATE_HERTZ, segment["end"] / RATE_HERTZ) for segment in segments]


def segments_served(url: str) -> list[tuple[float, float]]:
    """The same, asked with the recording itself as the body."""
    body = (HERE / "speech.wav").read_bytes()
    request = Request(f"{url}/predictions/speech", body, headers={"Content-Type": "audio/wav"})
    with urlopen(request, timeout=60) as response:
        return [(segment["start"], segment["end"]) for segment in json.load(response)["segments"]]


def main() -> int:
    """Compare the number of segments and their borders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="where the model is served")
    served, expected = segments_served(parser.parse_args().url), segments_in_process()
    for start, end in served:
        print(f"speech: from {start:.3f} s to {end:.3f} s")
    if len(served) != len(expected) or not served:
        print(f"speech: {len(served)} segments, {len(expected)} in process")
        return 1
    difference = (torch.tensor(served) - torch.tensor(expected)).abs().max().item()
    print(f"speech: {len(served)} segments, largest difference {difference:.1e} s")
    return 0 if difference <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
