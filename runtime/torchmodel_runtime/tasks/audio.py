"""Recordings as waveforms: decode, mix to mono, resample. Used by `speech.py`; knows no task.

The resampler is bandlimited interpolation: a windowed sinc evaluated at the output's times, with one filter for each phase
of the rational rate (J. O. Smith, "Digital Audio Resampling Home Page", ccrma.stanford.edu/~jos/resample; Kaiser window:
Kaiser and Schafer 1980).
"""

from __future__ import annotations

import io
import math

import numpy as np
import soundfile

from torchmodel_runtime.errors import invalid, too_large
from torchmodel_runtime.tasks import FREE, Allowance

ZERO_CROSSINGS = 32
"""Sinc lobes on each side; with KAISER_BETA a transition band of about 1/16 of the lower rate."""
KAISER_BETA = 8.6
"""About 90 dB of stop-band attenuation (Kaiser and Schafer), the noise floor of 16-bit recordings."""
ROLLOFF = 0.94
"""Cut-off as a share of the lower Nyquist rate, so that the transition band ends close to it."""
MAX_CHANNELS = 16
MIN_RATE_HERTZ, MAX_RATE_HERTZ = 1000, 384_000
BLOCK_FRAMES = 1 << 16
SAMPLE_BYTES = 8
"""Of memory for each sample of a recording, mixed: float32 in blocks, then joined; or joined, then with margins."""
PHASES_AT_ONCE = 1024
"""Filters made by one call of numpy; more would only take memory."""


def decode_audio(body: bytes, max_duration_s: float, where: str, allowance: Allowance = FREE) -> tuple[np.ndarray, int]:
    """An encoded recording as mono float32 (samples,) and its rate; RequestError 400, 413 or 429 says why there is none.

    Borrows SAMPLE_BYTES for each sample, which the caller gives back.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(body)) as sound:
            rate_hertz, channels = sound.samplerate, sound.channels
            if channels > MAX_CHANNELS or not MIN_RATE_HERTZ <= rate_hertz <= MAX_RATE_HERTZ:
                raise invalid(
                    f"{where}: {channels} channels at {rate_hertz} Hz, taken are at most {MAX_CHANNELS} "
                    f"at {MIN_RATE_HERTZ} to {MAX_RATE_HERTZ} Hz"
                )
            limit = int(max_duration_s * rate_hertz)
            # mixed block by block: a small FLAC file can hold gigabytes of silence in many channels
            blocks, frames = [], 0
            # and not by `blocks`, which takes no coding that cannot be sought in
            while len(block := sound.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
                frames += len(block)
                if frames > limit:
                    raise too_large(f"{where}: longer than {max_duration_s:g} s (task.speech.maxDurationSeconds)")
                allowance.borrow(SAMPLE_BYTES * len(block))
                blocks.append(block.mean(axis=1))
    except soundfile.SoundFileError as error:
        # str() of it names the file object by its address
        words = error.error_string if isinstance(error, soundfile.LibsndfileError) else error
        raise invalid(f"{where}: not a recording of a known format (WAV, FLAC, OGG, MP3, AIFF): {words}") from None
    if not frames:
        raise invalid(f"{where}: the recording holds no samples")
    waveform = np.concatenate(blocks)
    if not np.isfinite(waveform).all():
        raise invalid(f"{where}: the recording holds samples that are not finite")
    return waveform, rate_hertz


def resampled_length(samples: int, from_hertz: int, to_hertz: int) -> int:
    """How many samples as many become at another rate."""
    divisor = math.gcd(from_hertz, to_hertz)
    return -(-samples * (to_hertz // divisor) // (from_hertz // divisor))


def resample(waveform: np.ndarray, from_hertz: int, to_hertz: int) -> np.ndarray:
    """The same sound (samples,) float32 at another rate; ceil(samples * to / from) samples."""
    if from_hertz == to_hertz:
        return waveform
    divisor = math.gcd(from_hertz, to_hertz)
    up, down = to_hertz // divisor, from_hertz // divisor
    length = resampled_length(len(waveform), from_hertz, to_hertz)
    cutoff = ROLLOFF * min(1.0, up / down)  # of the input's Nyquist rate
    half = math.ceil(ZERO_CROSSINGS / cutoff)
    padded = np.pad(waveform.astype(np.float32, copy=False), (half, half + down + 1))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    output = np.empty(length, np.float32)
    phases = min(up, length)
    for first in range(0, phases, PHASES_AT_ONCE):
        block = np.arange(first, min(first + PHASES_AT_ONCE, phases))
        filters = _make_filters((block * down % up) / up, half, cutoff)
        for phase, taps in zip(block.tolist(), filters, strict=True):
            # output number phase + n * up lies at input time phase * down / up + n * down
            rows = windows[phase * down // up :: down][: len(range(phase, length, up))]
            output[phase::up] = rows @ taps
    return output


def _make_filters(shifts: np.ndarray, half: int, cutoff: float) -> np.ndarray:
    """Taps (shifts, 2 * half + 1) float32 that give the sound's value each shift (0 to 1 samples) after the middle one."""
    times = np.arange(-half, half + 1) - shifts[:, None]
    window = np.i0(KAISER_BETA * np.sqrt(np.clip(1 - (times / half) ** 2, 0, 1))) / np.i0(KAISER_BETA)
    taps = cutoff * np.sinc(cutoff * times) * window
    normed: np.ndarray = (taps / taps.sum(axis=1, keepdims=True)).astype(np.float32)  # a constant stays constant
    return normed
