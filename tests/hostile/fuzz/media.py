"""Checks of what decodes media: `Task.prepare` of each task, and the resampler."""

from __future__ import annotations

import math
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hostile.fuzz.promises import check_refusal, promise
from PIL import Image
from torchmodel_runtime.config import ImageClassification, Speech, TextEmbedding
from torchmodel_runtime.errors import RequestError
from torchmodel_runtime.tasks import Task
from torchmodel_runtime.tasks.audio import resample
from torchmodel_runtime.tasks.image import ImageTask
from torchmodel_runtime.tasks.speech import SpeechTask
from torchmodel_runtime.tasks.text import TextTask
from torchmodel_runtime.tensors import Arrays, bytes_tensor


def _check_parts(task: Task, body: bytes | str, shape: tuple[int, ...], datatype: type[np.generic]) -> Arrays | None:
    """The parts of one element: -1 in the shape is any size; None when it is refused."""
    inputs: Arrays = [bytes_tensor([body])]
    task.is_heavy(inputs)
    try:
        work = task.prepare(inputs)
    except RequestError as error:
        check_refusal(error, "v2")
        return None
    (part,) = work.parts
    for array in part:
        promise(array.dtype == datatype, array.dtype)
        promise(array.ndim == len(shape), array.shape)
        promise(all(allowed in (-1, given) for given, allowed in zip(array.shape, shape, strict=True)), array.shape)
        promise(array.size > 0 and bool(np.isfinite(array).all()), array.shape)
    return part


Image.preinit()  # Pillow imports its formats late, and what is imported late is not instrumented
IMAGES = ImageTask(ImageClassification(resize_pixels=16, crop_pixels=16))
SPEECH = SpeechTask(Speech(max_duration_seconds=2))


def check_image(data: bytes) -> None:
    """A picture; a PNG also with its checksums made right, which a fuzzer cannot guess."""
    _check_parts(IMAGES, data, (1, 3, 16, 16), np.float32)
    if data.startswith(_PNG):
        _check_parts(IMAGES, _with_checksums(data), (1, 3, 16, 16), np.float32)


_PNG = b"\x89PNG\r\n\x1a\n"


def _with_checksums(data: bytes) -> bytes:
    repaired, position = bytearray(data), len(_PNG)
    while position + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, position)
        end = position + 8 + size
        if end + 4 > len(data):
            break
        struct.pack_into(">I", repaired, end, zlib.crc32(repaired[position + 4 : end]))
        position = end + 4
    return bytes(repaired)


def check_audio(data: bytes) -> None:
    """A recording: at most two seconds at 16 kHz, in whole windows."""
    part = _check_parts(SPEECH, data, (1, -1), np.float32)
    if part is not None:
        promise(part[0].shape[1] % 512 == 0 and part[0].shape[1] <= 2 * 16000 + 512, part[0].shape)


def check_resample(data: bytes) -> None:
    """The resampler: any two rates, any samples; as many come out as the rates say, and no louder than a little."""
    if len(data) < 12:
        return
    from_hertz, to_hertz, seed = struct.unpack_from("<III", data)
    from_hertz, to_hertz = 1000 + from_hertz % 383_001, 4000 + to_hertz % 188_001
    if math.lcm(from_hertz, to_hertz) // from_hertz > 4096:
        return  # filters by the thousand: right, and slow
    samples = np.frombuffer(data[12:], np.int8).astype(np.float32) / 128
    if not len(samples):
        return
    heard = resample(samples, from_hertz, to_hertz)
    promise(len(heard) == -(-len(samples) * to_hertz // from_hertz), len(heard), seed)
    promise(bool(np.isfinite(heard).all()) and float(np.abs(heard).max()) < 8, heard)


def make_text_check() -> Callable[[bytes], None]:
    """A text, by a tokenizer of a few words; made late, since it is a file."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import Whitespace

    words = ["[PAD]", "[UNK]", "the", "dog", "a", "##a", "##b"]
    tokenizer = Tokenizer(WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(str(Path(folder) / "tokenizer.json"))
        task = TextTask(TextEmbedding(max_length_tokens=16), Path(folder))

    def check_text(data: bytes) -> None:
        _check_parts(task, data, (1, -1), np.int64)
        _check_parts(task, data.decode("utf-8", "replace"), (1, -1), np.int64)

    return check_text
