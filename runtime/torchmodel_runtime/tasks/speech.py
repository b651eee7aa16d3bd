"""Task type speech: a recording in, the stretches of speech out.

The module gives one probability for each window of samples; what counts as speech is decided here, by the options.
Recordings differ in length, so each is a part of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from torchmodel_runtime.config import WARM_UP_FAILED, Signature, Speech, TensorSpec
from torchmodel_runtime.errors import StartError
from torchmodel_runtime.tasks import FREE, Allowance, ModuleCall, Work
from torchmodel_runtime.tasks.audio import SAMPLE_BYTES, decode_audio, resample, resampled_length
from torchmodel_runtime.tasks.media import read_elements
from torchmodel_runtime.tensors import Arrays, bytes_tensor

HYSTERESIS = 0.15
"""Speech that has begun goes on while the probability is at most this much under the threshold: without it a voice that
hovers around the threshold is cut to pieces. The value is the one Silero VAD's documentation recommends."""

SYNTHETIC_WINDOWS = 8


@dataclass(frozen=True)
class Segment:
    """One stretch of speech, in seconds from the start of the recording."""

    start_s: float
    end_s: float


class SpeechTask:
    """Recordings in, segments out."""

    media: tuple[str, ...] = ("audio/",)
    signature = Signature(
        inputs=[TensorSpec(name="audio", datatype="BYTES", shape=[-1])],
        outputs=[
            TensorSpec(name="segments", datatype="BYTES", shape=[-1]),
            TensorSpec(name="duration_seconds", datatype="FP64", shape=[-1]),
        ],
    )
    lengths = (0, 0)
    call = ModuleCall(outputs=(TensorSpec(name="probabilities", datatype="FP32", shape=[-1, -1]),), more_outputs=True)

    def __init__(self, options: Speech) -> None:
        self._options = options

    def is_heavy(self, inputs: Arrays) -> bool:  # noqa: ARG002 - part of the Task protocol
        """Always: decoding takes milliseconds."""
        return True

    def prepare(self, inputs: Arrays, allowance: Allowance = FREE) -> Work:
        """Each recording as a part, float32 (1, samples), padded with silence to whole windows."""
        parts, durations_s = [], []
        for where, body in read_elements("audio", inputs[0]):
            part, duration_s = self._prepare_one(where, body, allowance)
            parts.append([part])
            durations_s.append(duration_s)
        return Work(parts, notes=durations_s)

    def finish(self, work: Work, results: list[Arrays]) -> Arrays:
        """For each recording its segments as a JSON text (object), and its duration (float64), in seconds."""
        texts = []
        for duration_s, result in zip(work.notes, results, strict=True):
            segments = find_segments(result[0][0], duration_s, self._options)
            texts.append(
                msgspec.json.encode([{"start_seconds": s.start_s, "end_seconds": s.end_s} for s in segments]).decode()
            )
        return [bytes_tensor(texts), np.asarray(work.notes, np.float64)]

    def rows(self, outputs: Arrays) -> list[Any]:
        """`{"segments": [{"start", "end"}], "duration_seconds"}` for each recording."""
        rows = []
        for text, duration_s in zip(outputs[0].tolist(), outputs[1].tolist(), strict=True):
            segments = [{"start": s["start_seconds"], "end": s["end_seconds"]} for s in msgspec.json.decode(text)]
            rows.append({"segments": segments, "duration_seconds": round(duration_s, 3)})
        return rows

    def reply(self, outputs: Arrays, single: bool) -> Any:
        """As `rows`; the object itself for one recording."""
        rows = self.rows(outputs)
        return rows[0] if single else rows

    def _prepare_one(self, where: str, body: bytes, allowance: Allowance) -> tuple[np.ndarray, float]:
        """The part, and the recording's duration in seconds."""
        options = self._options
        waveform, rate_hertz = decode_audio(body, options.max_duration_seconds, where, allowance)
        samples, to_hertz, window = len(waveform), options.sample_rate_hertz, options.window_samples
        part_bytes = waveform.itemsize * (resampled_length(samples, rate_hertz, to_hertz) + window)
        allowance.keep(part_bytes)
        allowance.borrow(part_bytes)  # as resampled, before whole windows are made of it
        waveform = resample(waveform, rate_hertz, to_hertz)
        part = np.pad(waveform, (0, -len(waveform) % window))[None]
        allowance.give_back(part_bytes + SAMPLE_BYTES * samples)
        return part, samples / rate_hertz

    def learn(self, outputs: Arrays) -> None:
        """One probability a window, or the times would be wrong."""
        probabilities = outputs[0]
        windows = SYNTHETIC_WINDOWS
        if probabilities.ndim != 2 or probabilities.shape[1] != windows:
            raise StartError(
                WARM_UP_FAILED,
                f"task.speech: the module returned shape {list(probabilities.shape)} for {windows} windows of "
                f"{self._options.window_samples} samples, must be (rows, {windows}): one probability a window",
                "Set task.speech.windowSamples to the module's own window, or return one probability a window.",
            )
        if probabilities.min() < 0 or probabilities.max() > 1:
            raise StartError(
                WARM_UP_FAILED,
                f"task.speech: the module returned {probabilities.min():.3g} to {probabilities.max():.3g}, "
                "probabilities are 0 to 1",
                "End the module's forward with a sigmoid.",
            )

    def synthetic(self, rows: int, generator: np.random.Generator, length: int = 0) -> Arrays:  # noqa: ARG002
        """Noise of a quiet recording's level."""
        samples = SYNTHETIC_WINDOWS * self._options.window_samples
        return [0.1 * generator.standard_normal((rows, samples), dtype=np.float32)]


def find_segments(probabilities: np.ndarray, duration_s: float, options: Speech) -> list[Segment]:
    """The stretches of speech, in order and not overlapping, of probabilities (windows,) float32.

    Runs of windows at or over the threshold (held on by HYSTERESIS) are joined over silence shorter than
    minSilenceMilliseconds, dropped when shorter than minSpeechMilliseconds, then padded at both ends; neighbours that
    would overlap by padding meet in the middle.
    """
    rate = options.sample_rate_hertz
    length = round(duration_s * rate)
    runs: list[list[int]] = []  # in samples: sums of whole numbers are exact
    for first, last in _find_runs(probabilities, options.threshold):
        start, end = first * options.window_samples, min(last * options.window_samples, length)
        if runs and (start - runs[-1][1]) * 1000 < options.min_silence_milliseconds * rate:
            runs[-1][1] = end
        else:
            runs.append([start, end])
    runs = [run for run in runs if (run[1] - run[0]) * 1000 >= options.min_speech_milliseconds * rate]
    padding = options.padding_milliseconds * rate / 1000
    segments = []
    for index, (start, end) in enumerate(runs):
        lowest = (runs[index - 1][1] + start) / 2 if index else 0
        highest = (end + runs[index + 1][0]) / 2 if index + 1 < len(runs) else length
        first_s, last_s = max(start - padding, lowest) / rate, min(end + padding, highest) / rate
        segments.append(Segment(round(first_s, 3), round(last_s, 3)))
    return segments


def _find_runs(probabilities: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """First and one past last window of each run of speech."""
    runs, first = [], None
    for index, probability in enumerate(probabilities.tolist()):
        if first is None and probability >= threshold:
            first = index
        elif first is not None and probability < threshold - HYSTERESIS:
            runs.append((first, index))
            first = None
    if first is not None:
        runs.append((first, len(probabilities)))
    return runs
