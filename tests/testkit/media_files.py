"""Pictures and recordings, made in memory. Knows no torch, so that programs that only send them stay small."""

from __future__ import annotations

import io

import numpy as np
import soundfile
from PIL import Image


def picture(kind: str = "PNG", size: tuple[int, int] = (40, 40)) -> bytes:
    """A red picture in a format of Pillow's."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 10)).save(buffer, kind)
    return buffer.getvalue()


def recording(kind: str = "WAV", seconds: float = 1.0, rate_hertz: int = 16000, channels: int = 1) -> bytes:
    """A tone between two silences, in a format of libsndfile's."""
    times = np.arange(int(seconds * rate_hertz)) / rate_hertz
    samples = np.where(abs(times - seconds / 2) < seconds / 4, 0.8 * np.sin(2 * np.pi * 440 * times), 0.0)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.repeat(samples[:, None], channels, axis=1), rate_hertz, format=kind)
    return buffer.getvalue()
