"""Task type image-classification: an image in, the top k labels with scores out.

Decoding follows torchvision's reference preset (resize the shorter side, centre crop, scale, normalise), computed by Pillow
and numpy: the answers are those the checkpoint was evaluated with. JPEG draft mode would be twice as fast and is not used,
because its reduced decoding changes pixels.
"""

from __future__ import annotations

import io
import math
import warnings
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from torchmodel_runtime.config import CONFIG_INVALID, ImageClassification, Signature, TensorSpec
from torchmodel_runtime.errors import StartError, invalid, too_large
from torchmodel_runtime.tasks import FREE, Allowance, ModuleCall, Work
from torchmodel_runtime.tasks.media import read_elements
from torchmodel_runtime.tensors import Arrays

PIXEL_BYTES = {"WEBP": 18}
"""Of an image while it is decoded, by format: the decoder of WebP holds the canvas twice, and a copy."""
OTHER_PIXEL_BYTES = 10
"""Of all others: Pillow holds four for a pixel, and turning or converting makes a second image; two more for 16-bit grey."""
CROP_BYTES = 48
"""Of a pixel of the crop while it is normalised: three channels as float32, four times."""

MAX_READS = 1 << 16
"""Of one file, by Pillow: it reads what an image is made of piece by piece, in Python, which other requests then wait for. A
picture of 64 MiB has some 25,000 where it is cut finely; so many take a tenth of a second or two."""

LONGEST = 4
"""A picture so many times as long as it is wide is always taken: what it is resized to may be more than it was."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Pillow knows some 40 more, among them EPS, which starts Ghostscript."""

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class ImageTask:
    """Images in, labels out."""

    media: tuple[str, ...] = ("image/",)
    signature: Signature
    lengths = (0, 0)
    call = ModuleCall(outputs=(TensorSpec(name="logits", datatype="FP32", shape=[-1, -1]),), more_outputs=True)

    def __init__(self, options: ImageClassification) -> None:
        self._options = options
        self._labels = _read_labels(options)
        self._top_k = options.top_k
        self.signature = _make_signature(options.top_k)
        Image.MAX_IMAGE_PIXELS = options.max_pixels
        # Pillow warns from the limit on and refuses from twice the limit; decode_image refuses from the limit on
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)

    def is_heavy(self, inputs: Arrays) -> bool:  # noqa: ARG002 - part of the Task protocol
        """Always: even a small image takes milliseconds."""
        return True

    def prepare(self, inputs: Arrays, allowance: Allowance = FREE) -> Work:
        """All images of a request as one part, float32 (rows, 3, crop, crop)."""
        shape = (len(inputs[0]), 3, self._options.crop_pixels, self._options.crop_pixels)
        allowance.keep(math.prod(shape) * np.dtype(np.float32).itemsize)
        part = np.empty(shape, np.float32)
        for index, (where, body) in enumerate(read_elements("image", inputs[0])):
            part[index] = decode_image(body, self._options, where, allowance)
        return Work([[part]])

    def finish(self, work: Work, results: list[Arrays]) -> Arrays:  # noqa: ARG002
        """Labels (object), scores (float32) and class indices (int64), each (rows, k), best first."""
        scores = activate(results[0][0], self._options.activation)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self._top_k]
        labels = np.array([[self._label(index) for index in row] for row in order.tolist()], dtype=np.object_)
        return [labels, np.take_along_axis(scores, order, axis=1), order.astype(np.int64)]

    def rows(self, outputs: Arrays) -> list[Any]:
        """`{"labels": [...], "scores": [...]}` for each image."""
        labels, scores, _ = outputs
        return [
            {"labels": names.tolist(), "scores": values.tolist()} for names, values in zip(labels, scores, strict=True)
        ]

    def reply(self, outputs: Arrays, single: bool) -> Any:
        """`{label: score, ...}` best first, as TorchServe's image_classifier answers."""
        labels, scores, _ = outputs
        replies = [
            dict(zip(names.tolist(), values.tolist(), strict=True))
            for names, values in zip(labels, scores, strict=True)
        ]
        return replies[0] if single else replies

    def learn(self, outputs: Arrays) -> None:
        """One label for each class; a model with fewer classes than topK answers them all."""
        classes = outputs[0].shape[1]
        if self._labels and len(self._labels) != classes:
            raise StartError(
                CONFIG_INVALID,
                f"task.imageClassification: {len(self._labels)} labels, but the model gives {classes} classes",
                "Give one label for each class, in the model's order, or leave labels and labelSet out.",
            )
        self._top_k = min(self._top_k, classes)
        self.signature = _make_signature(self._top_k)

    def synthetic(self, rows: int, generator: np.random.Generator, length: int = 0) -> Arrays:  # noqa: ARG002
        """Noise of the range a normalised image has."""
        side = self._options.crop_pixels
        return [generator.standard_normal((rows, 3, side, side), dtype=np.float32)]

    def _label(self, index: int) -> str:
        return self._labels[index] if self._labels else str(index)


def _make_signature(k: int) -> Signature:
    return Signature(
        inputs=[TensorSpec(name="image", datatype="BYTES", shape=[-1])],
        outputs=[
            TensorSpec(name="labels", datatype="BYTES", shape=[-1, k]),
            TensorSpec(name="scores", datatype="FP32", shape=[-1, k]),
            TensorSpec(name="indices", datatype="INT64", shape=[-1, k]),
        ],
    )


def decode_image(body: bytes, options: ImageClassification, where: str, allowance: Allowance = FREE) -> np.ndarray:
    """An encoded image as float32 (3, crop, crop), normalised; RequestError 400, 413 or 429 says why there is none."""
    limit = options.max_pixels
    try:
        with Image.open(_Pieces(body, where), formats=FORMATS) as image:
            width, height = image.size
            if width * height > limit:
                raise too_large(
                    f"{where}: {width} x {height} pixels, at most {limit} are taken (task.imageClassification.maxPixels)"
                )
            pixels = math.prod(_resized_size(width, height, options, where))
            pixel_bytes = PIXEL_BYTES.get(image.format or "", OTHER_PIXEL_BYTES)
            borrowed = pixel_bytes * width * height + OTHER_PIXEL_BYTES * pixels + CROP_BYTES * options.crop_pixels**2
            allowance.borrow(borrowed)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            rgb = _to_rgb(image)
    except Image.DecompressionBombError:
        raise too_large(f"{where}: more than {limit} pixels (task.imageClassification.maxPixels)") from None
    except UnidentifiedImageError:
        raise invalid(f"{where}: not an image of a known format ({', '.join(FORMATS)})") from None
    except (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError) as error:
        # what Pillow's format readers raise for damaged files
        raise invalid(f"{where}: the image is damaged: {error}") from None
    size = _resized_size(*rgb.size, options, where)
    resized = rgb if size == rgb.size else rgb.resize(size, _FILTERS[options.interpolation])
    normal = normalize(_crop(resized, options.crop_pixels), options)
    allowance.give_back(borrowed)
    return normal


class _Pieces(io.BytesIO):
    """An image file that is read in MAX_READS pieces at most; RequestError 400 for one that is made of more."""

    def __init__(self, body: bytes, where: str) -> None:
        super().__init__(body)
        self._where = where
        self._left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """As io.BytesIO does."""
        self._left -= 1
        if self._left < 0:
            raise invalid(f"{self._where}: the image is damaged: it is made of more than {MAX_READS} pieces")
        return super().read(size)


def normalize(image: Image.Image, options: ImageClassification) -> np.ndarray:
    """RGB pixels as float32 (3, height, width): scaled to 0..1, minus mean, by std."""
    scaled = np.asarray(image, dtype=np.float32) / np.float32(255)
    normal = (scaled - np.asarray(options.mean, np.float32)) / np.asarray(options.std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1), dtype=np.float32)


def activate(logits: np.ndarray, activation: str) -> np.ndarray:
    """Scores float32 (rows, classes) of logits of the same shape."""
    logits = logits.astype(np.float32, copy=False)
    if activation == "softmax":
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
        return scores
    if activation == "sigmoid":
        return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), dtype=np.float32)  # the form that cannot overflow
    return logits


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB; 16-bit grey is scaled first, which Pillow's own conversion would clip."""
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        image = Image.fromarray((np.clip(wide, 0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _resized_size(width: int, height: int, options: ImageClassification, where: str) -> tuple[int, int]:
    """The shorter side becomes resize_pixels; the longer is rounded down (torchvision's Resize)."""
    short, target = min(width, height), options.resize_pixels
    size = (max(target, target * width // short), max(target, target * height // short))
    if math.prod(size) > max(options.max_pixels, LONGEST * target**2):
        raise invalid(f"{where}: {width} x {height} is too long and narrow")
    return size


def _crop(image: Image.Image, side: int) -> Image.Image:
    """The centred square; an image that is smaller gets black borders (torchvision's CenterCrop)."""
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def _read_labels(options: ImageClassification) -> list[str]:
    if options.labels and options.label_set != "none":
        raise StartError(
            CONFIG_INVALID,
            f"task.imageClassification: got both labels ({len(options.labels)}) and labelSet {options.label_set}",
            "Keep one of the two.",
        )
    if options.label_set == "imagenet-1k":
        text = resources.files("torchmodel_runtime.tasks").joinpath("imagenet_1k.txt").read_text()
        return [line for line in text.splitlines() if not line.startswith("#")]
    return list(options.labels)
