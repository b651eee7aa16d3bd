"""Recordings: for the model that `testkit.tiny_media.serve_speech` serves, which takes five seconds."""

from __future__ import annotations

import io
import struct

import numpy as np
import soundfile
from hostile.attack import TORCHSERVE, V1, V2, Attack, dump
from testkit.media_files import recording

WAV, FLAC, OGG, MP3 = recording("WAV"), recording("FLAC"), recording("OGG"), recording("MP3")


def wav(
    rate_hertz: int = 16000,
    channels: int = 1,
    bits: int = 16,
    kind: int = 1,
    data: bytes = bytes(64),
    size: int | None = None,
    whole: int | None = None,
) -> bytes:
    """A WAV file with this header; size: what the data's is said to be, whole: the file's."""
    block = channels * bits // 8 & 0xFFFF
    head = struct.pack("<HHIIHH", kind, channels, rate_hertz, rate_hertz * block & 0xFFFFFFFF, block, bits)
    body = (
        b"WAVEfmt "
        + struct.pack("<I", 16)
        + head
        + b"data"
        + struct.pack("<I", len(data) if size is None else size)
        + data
    )
    return b"RIFF" + struct.pack("<I", len(body) if whole is None else whole) + body


def silence(channels: int, rate_hertz: int, seconds: float) -> bytes:
    """A FLAC file: nothing at all in a few bytes a second."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate_hertz, channels, format="FLAC") as file:
        for _ in range(int(seconds * 10)):
            file.write(np.zeros((rate_hertz // 10, channels), np.int16))
    return buffer.getvalue()


def heard(
    title: str,
    body: bytes,
    says: str | tuple[str, ...],
    status: int = 400,
    content_type: str = "audio/wav",
    path: str = V2,
) -> Attack:
    """The recording itself as the body."""
    return Attack(title, body, says, status, path, content_type)


ELEMENT = "input 'audio'[0]: "
KNOWN = ELEMENT + "not a recording of a known format (WAV, FLAC, OGG, MP3, AIFF)"
TAKEN = "taken are at most 16 at 1000 to 384000 Hz"
LONG = ELEMENT + "longer than 5 s (task.speech.maxDurationSeconds)"
EMPTY = ELEMENT + "the recording holds no samples"

ATTACKS = (
    heard("a recording is empty", b"", "the body is empty"),
    heard("a recording is a byte", b"\0", KNOWN),
    heard("a recording is random bytes", bytes(range(256)) * 40, KNOWN),
    heard("a recording is a text", b"hello " * 1000, KNOWN),
    heard("a recording is a picture", b"\x89PNG\r\n\x1a\n" + bytes(100), KNOWN),
    heard("a recording is its magic alone", b"RIFF", KNOWN),
    heard("a recording is its header's beginning", WAV[:20], KNOWN),
    heard("a recording is its header alone", WAV[:44], ELEMENT),
    heard("a FLAC recording is cut off in its header", FLAC[:30], KNOWN, content_type="audio/flac"),
    heard("a FLAC recording is its header alone", FLAC[:100], ELEMENT, content_type="audio/flac"),
    heard("an Ogg recording is cut off in its header", OGG[:60], KNOWN, content_type="audio/ogg"),
    heard("an MP3 recording is a lonely frame", MP3[:3], KNOWN, content_type="audio/mpeg"),
    heard("a recording has no channels", wav(channels=0), ELEMENT),
    heard("a recording has 65,535 channels", wav(channels=65535), ELEMENT),
    heard(
        "a recording has 17 channels",
        wav(channels=17, data=bytes(34 * 20)),
        f"{ELEMENT}17 channels at 16000 Hz, {TAKEN}",
    ),
    heard("a recording has no rate", wav(rate_hertz=0), ELEMENT),
    heard("a recording has a rate of 1 Hz", wav(rate_hertz=1), f"{ELEMENT}1 channels at 1 Hz, {TAKEN}"),
    heard("a recording has a rate of 2^31 - 1 Hz", wav(rate_hertz=2**31 - 1), TAKEN),
    heard("a recording has a rate of 2^32 - 1 Hz", wav(rate_hertz=2**32 - 1), ELEMENT),
    heard("a recording has no bits", wav(bits=0), ELEMENT),
    heard("a recording has 65,535 bits", wav(bits=65535), ELEMENT),
    heard("a recording has an unknown coding", wav(kind=0x1234), KNOWN),
    heard("a recording has no samples", wav(data=b""), EMPTY),
    heard("a recording says that it has no samples", wav(size=0), ELEMENT),
    heard("a recording has half a sample", wav(data=b"\0"), EMPTY),
    heard(
        "a recording is not finite",
        wav(kind=3, bits=32, data=struct.pack("<4f", 0, float("nan"), 0, 0)),
        ELEMENT + "the recording holds samples that are not finite",
    ),
    heard(
        "a recording is infinitely loud",
        wav(kind=3, bits=32, data=struct.pack("<4f", 0, float("inf"), 0, 0)),
        ELEMENT + "the recording holds samples that are not finite",
    ),
    heard(
        "a recording is beyond FP32",
        wav(kind=3, bits=64, data=struct.pack("<4d", 0, 1e300, 0, 0)),
        ELEMENT + "the recording holds samples that are not finite",
    ),
    heard("a recording is too long", recording(seconds=6), LONG, 413),
    heard("a FLAC recording is a bomb", silence(1, 16000, 120), LONG, 413, "audio/flac"),
    heard("an Ogg recording is too long", recording("OGG", seconds=8), LONG, 413, "audio/ogg"),
    heard("an MP3 recording is too long", recording("MP3", seconds=8), LONG, 413, "audio/mpeg"),
    heard(
        "a recording comes by TorchServe's route, and is none",
        b"\0\1\2\3",
        KNOWN,
        content_type="application/octet-stream",
        path=TORCHSERVE,
    ),
    heard("a recording comes by V1", WAV, "Content-Type audio/wav: must be application/json", 415, path=V1),
    heard(
        "a recording comes as JSON",
        WAV,
        "body: looks like a WAV recording, its Content-Type must say so (audio/...)",
        content_type="application/json",
    ),
    Attack(
        "the second recording is none",
        dump({"instances": [{"b64": ""}, {"b64": "AAAA"}]}),
        "input 'audio'[0]: is empty",
        path=V1,
    ),
    Attack(
        "a recording in JSON is no base64",
        dump({"inputs": [{"name": "audio", "datatype": "BYTES", "shape": [1], "data": ["\u2603"]}]}),
        ELEMENT + "must be base64 text",
    ),
)
