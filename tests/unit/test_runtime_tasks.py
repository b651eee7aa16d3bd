"""Media in, answers out, on numpy arrays."""

from __future__ import annotations

import base64
import io
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchmodel_runtime.config import ImageClassification, Padding, Speech, Task, TextEmbedding
from torchmodel_runtime.errors import RequestError, StartError, too_large
from torchmodel_runtime.tasks import PaddingRule, make_task
from torchmodel_runtime.tasks.audio import decode_audio, resample
from torchmodel_runtime.tasks.image import ImageTask, activate, decode_image
from torchmodel_runtime.tasks.speech import SpeechTask, find_segments
from torchmodel_runtime.tasks.text import TextTask, pool
from torchmodel_runtime.tensors import bytes_tensor

PLAIN = ImageClassification(resize_pixels=8, crop_pixels=8, mean=[0, 0, 0], std=[1, 1, 1], top_k=2)


def encode_image(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    grey = Image.new("L", (8, 8), 128)
    image = Image.fromarray(np.full((8, 8), 128 * 257, np.uint16)) if mode == "I;16" else grey.convert(mode)
    pixels = decode_image(encode_image(image), PLAIN, "x")
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == np.float32
    if mode != "1":
        np.testing.assert_allclose(pixels, 128 / 255, atol=0.01)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_usual_formats_are_read(kind: str) -> None:
    pixels = decode_image(encode_image(Image.new("RGB", (8, 8), (255, 0, 0)), kind), PLAIN, "x")
    np.testing.assert_allclose(pixels.mean(axis=(1, 2)), [1, 0, 0], atol=0.02)


def test_a_photograph_is_turned_as_its_camera_says() -> None:
    image = Image.new("RGB", (8, 8), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 8, 4))  # white on top
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    pixels = decode_image(encode_image(image, "PNG", exif=exif), PLAIN, "x")
    assert pixels[:, :4].max() == 0
    assert pixels[:, 4:].min() == 1


def test_the_shorter_side_is_resized_and_the_centre_cut_out() -> None:
    image = Image.new("RGB", (32, 16), (0, 0, 0))
    image.paste((255, 255, 255), (6, 0, 26, 16))
    assert decode_image(encode_image(image), PLAIN, "x").min() > 0.99
    options = ImageClassification(mean=[0.5] * 3, std=[0.25] * 3, resize_pixels=8, crop_pixels=12)
    pixels = decode_image(encode_image(Image.new("RGB", (8, 8), (255, 255, 255))), options, "x")
    assert pixels.shape == (3, 12, 12)
    assert pixels.max() == pytest.approx(2)
    assert pixels.min() == pytest.approx(-2)  # a smaller picture gets black borders


@given(st.binary(max_size=300))
def test_random_bytes_are_no_image(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        decode_image(body, PLAIN, "x")
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xd8" + b"\xff" * 1_000_000,
        b"\xff\xd8" + b"\xff\xe0\0\x02" * 250_000,
        b"GIF89a" + bytes(7) + b"!\xfe\0" * 300_000,
    ],
    ids=["JPEG of fill bytes", "JPEG of empty segments", "GIF of empty extensions"],
)
def test_a_file_of_very_many_pieces_is_not_read_to_its_end(body: bytes) -> None:
    with pytest.raises(RequestError, match="more than 65536 pieces"):
        decode_image(body, PLAIN, "x")


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_image_is_an_image_or_a_400(position: int, value: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    for kind in ("PNG", "JPEG", "GIF"):
        body = bytearray(encode_image(Image.fromarray(noise), kind))
        body[position % len(body)] = value
        try:
            pixels = decode_image(bytes(body), PLAIN, "x")
        except RequestError as error:
            if error.status not in (400, 413):
                raise
        else:
            assert pixels.shape == (3, 8, 8)


def test_labels_scores_and_indices_belong_together() -> None:
    task = ImageTask(ImageClassification(labels=["a", "b", "c"], top_k=2))
    logits = np.log(np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]], np.float32))
    task.learn([logits])
    outputs = task.finish(task.prepare([bytes_tensor([encode_image(Image.new("RGB", (9, 9)))])]), [[logits]])
    labels, scores, indices = outputs
    assert labels.tolist() == [["b", "c"], ["a", "c"]]
    np.testing.assert_allclose(scores, [[0.5, 0.3], [0.6, 0.3]], rtol=1e-5)
    assert indices.tolist() == [[1, 2], [0, 2]]
    assert task.rows(outputs)[0]["labels"] == ["b", "c"]
    assert list(task.reply(outputs, single=True)) == ["b", "c"]


def test_labels_must_be_one_for_each_class_and_k_is_at_most_their_number() -> None:
    with pytest.raises(StartError, match="2 labels, but the model gives 3 classes"):
        ImageTask(ImageClassification(labels=["a", "b"])).learn([np.zeros((1, 3), np.float32)])
    task = ImageTask(ImageClassification())
    task.learn([np.zeros((1, 3), np.float32)])
    assert task.signature.outputs[0].shape == [-1, 3]
    assert ImageTask(ImageClassification(label_set="imagenet-1k"))._labels[281] == "tabby"


def test_the_label_file_has_a_thousand_names() -> None:
    text = resources.files("torchmodel_runtime.tasks").joinpath("imagenet_1k.txt").read_text()
    assert len([line for line in text.splitlines() if not line.startswith("#")]) == 1000


def test_activations_do_not_overflow() -> None:
    logits = np.array([[1000.0, -1000.0]], np.float32)
    assert activate(logits, "softmax").tolist() == [[1, 0]]
    assert activate(logits, "sigmoid").tolist() == [[1, 0]]
    assert activate(logits, "none").tolist() == logits.tolist()


def test_base64_that_is_none_names_the_element() -> None:
    good = base64.b64encode(encode_image(Image.new("RGB", (9, 9)))).decode()
    with pytest.raises(RequestError, match=r"input 'image'\[1\]: must be base64"):
        ImageTask(PLAIN).prepare([bytes_tensor([good, "%%%"])])


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    options = msgspec.structs.replace(PLAIN, max_pixels=1024)
    assert decode_image(encode_image(Image.new("RGB", (32, 32))), options, "x").shape == (3, 8, 8)
    for size in ((33, 32), (100, 100)):  # Pillow's own limit is at twice as many
        with pytest.raises(RequestError, match=r"pixels.*\(task.imageClassification.maxPixels\)") as caught:
            decode_image(encode_image(Image.new("RGB", size)), options, "x")
        assert caught.value.status == 413


def test_a_picture_that_would_be_resized_to_a_giant_is_refused() -> None:
    with pytest.raises(RequestError, match=r"x: 1 x 900 is too long and narrow"):
        decode_image(encode_image(Image.new("RGB", (1, 900))), msgspec.structs.replace(PLAIN, max_pixels=1024), "x")


# --- memory ---


class Ledger:
    """An allowance that takes notes."""

    def __init__(self, max_bytes: int = 1 << 40) -> None:
        self.max_bytes = max_bytes
        self.kept = self.held = self.most = self.asked = 0

    def keep(self, size_bytes: int) -> None:
        self.kept += size_bytes
        self.borrow(size_bytes)

    def borrow(self, size_bytes: int) -> None:
        self.asked += 1
        self.held += size_bytes
        self.most = max(self.most, self.held)
        if self.held > self.max_bytes:
            raise too_large("enough")

    def give_back(self, size_bytes: int) -> None:
        self.held -= size_bytes


def make_texts(folder: Path) -> Any:
    make_tokenizer(folder)
    return TextTask(TextEmbedding(), folder), [bytes_tensor(["a b", "b", "a a a " * 30_000, "b a"] * 3)]


def make_pictures(_: Path) -> Any:
    return ImageTask(PLAIN), [bytes_tensor([encode_image(Image.new("RGB", (40, 30)))] * 3)]


def make_recordings(_: Path) -> Any:
    return SpeechTask(Speech()), [bytes_tensor([encode_audio(tone(100, 44100), 44100, "FLAC")] * 3)]


@pytest.mark.parametrize("make", [make_texts, make_pictures, make_recordings])
def test_parts_are_announced_and_everything_else_is_given_back(make: Any, tmp_path: Path) -> None:
    task, inputs = make(tmp_path)
    ledger = Ledger()
    parts_bytes = sum(array.nbytes for part in task.prepare(inputs, ledger).parts for array in part)
    assert parts_bytes <= ledger.kept <= 1.2 * parts_bytes
    assert ledger.held == ledger.kept
    assert ledger.most > 2 * max(array.nbytes for array in task.prepare(inputs[:1]).parts[0]), (
        "decoding takes memory too"
    )


@pytest.mark.parametrize(
    ("make", "max_bytes", "asked"),
    [(make_texts, 1 << 20, 3), (make_pictures, 12_000, 2), (make_recordings, 500_000, 6)],
    ids=["texts", "pictures", "recordings"],
)
def test_what_is_refused_is_not_decoded_on(make: Any, max_bytes: int, asked: int, tmp_path: Path) -> None:
    task, inputs = make(tmp_path)
    ledger = Ledger(max_bytes)
    with pytest.raises(RequestError, match="enough"):
        task.prepare(inputs, ledger)
    assert ledger.asked <= asked


# --- text ---


def test_pooling_is_the_mean_of_all_tokens_or_the_first() -> None:
    hidden = np.array([[[1, 2], [3, 4]]], np.float32)
    assert pool(hidden, TextEmbedding(normalize=False)).tolist() == [[2, 3]]
    assert pool(hidden, TextEmbedding(pooling="cls", normalize=False)).tolist() == [[1, 2]]
    np.testing.assert_allclose(np.linalg.norm(pool(hidden, TextEmbedding()), axis=1), 1, rtol=1e-6)
    assert pool(np.zeros_like(hidden), TextEmbedding()).tolist() == [[0, 0]]


def make_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=50, pad_id=0)
    tokenizer.save(str(folder / "tokenizer.json"))


def test_texts_of_one_request_are_parts_by_length_and_cut_at_the_limit(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    task = TextTask(TextEmbedding(max_length_tokens=4), tmp_path)
    work = task.prepare([bytes_tensor(["a b", "b", "a a a a a a a", "b a"])])
    assert [ids.tolist() for ids, _, _ in work.parts] == [[[2]], [[1, 2], [2, 1]], [[1, 1, 1, 1]]]
    assert all(mask.all() and not types.any() for _, mask, types in work.parts)
    with pytest.raises(RequestError, match=r"'text'\[1\]: holds no tokens"):
        task.prepare([bytes_tensor(["a", ""])])


def test_vectors_come_in_the_order_of_their_texts(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    task = TextTask(TextEmbedding(normalize=False), tmp_path)
    work = task.prepare([bytes_tensor(["a b a", "b", "a b", "b b b", "a"])])
    hidden = [[part[0][:, :, None].astype(np.float32)] for part in work.parts]  # of each token its own number
    np.testing.assert_allclose(task.finish(work, hidden)[0][:, 0], [4 / 3, 2, 3 / 2, 2, 1], rtol=1e-6)


def test_texts_are_padded_with_the_tokenizers_own_id_and_tried_from_short_to_long(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    task = TextTask(TextEmbedding(), tmp_path)
    assert task.call.padding == PaddingRule((0, 0, 0))
    assert task.lengths == (3, 64)
    assert TextTask(TextEmbedding(max_length_tokens=2), tmp_path).lengths == (2, 2)
    ids, mask, types = task.synthetic(2, np.random.default_rng(0), 7)
    assert ids.shape == mask.shape == types.shape == (2, 7)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("image-classification", "nothing to pad"),
        ("speech", "nothing to pad"),
        ("text-embedding", "a padding of their own"),
    ],
)
def test_padding_is_declared_for_tensors_only(tmp_path: Path, kind: str, words: str) -> None:
    with pytest.raises(StartError, match=words):
        make_task(Task(type=kind), None, tmp_path, Padding(mask="mask"))  # type: ignore[arg-type]


def test_a_broken_tokenizer_is_a_broken_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(StartError, match=r"tokenizer.json cannot be read"):
        TextTask(TextEmbedding(), tmp_path)


# --- audio ---


def encode_audio(samples: np.ndarray, rate: int, kind: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def tone(hertz: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate).astype(np.float32)


@pytest.mark.parametrize(
    ("from_hertz", "to_hertz"), [(44100, 16000), (48000, 16000), (8000, 16000), (22050, 16000), (16000, 11025)]
)
def test_resampling_keeps_a_tone_in_the_band(from_hertz: int, to_hertz: int) -> None:
    output = resample(tone(1000, from_hertz), from_hertz, to_hertz)
    expected = tone(1000, to_hertz)
    assert len(output) == to_hertz
    np.testing.assert_allclose(output[500:-500], expected[500:-500], atol=1e-3)


@pytest.mark.parametrize(("from_hertz", "to_hertz"), [(44100, 16000), (48000, 8000)])
def test_resampling_removes_what_the_new_rate_cannot_hold(from_hertz: int, to_hertz: int) -> None:
    output = resample(tone(to_hertz * 0.6, from_hertz), from_hertz, to_hertz)
    assert np.abs(output[500:-500]).max() < 1e-3


@given(st.integers(1, 3000), st.sampled_from([8000, 11025, 22050, 44100, 48000, 12345]))
def test_resampling_keeps_duration_and_level(samples: int, rate: int) -> None:
    output = resample(np.ones(samples, np.float32), rate, 16000)
    assert len(output) == -(-samples * 16000 // rate)
    middle = output[len(output) // 2]
    assert samples < 1000 or middle == pytest.approx(1, abs=1e-3)


def test_channels_are_mixed_and_too_long_recordings_refused() -> None:
    stereo = np.stack([np.full(800, 0.5), np.full(800, -0.25)], axis=1)
    waveform, rate = decode_audio(encode_audio(stereo, 8000), 10, "x")
    assert rate == 8000
    np.testing.assert_allclose(waveform, 0.125, atol=1e-4)
    with pytest.raises(RequestError) as caught:
        decode_audio(encode_audio(np.zeros(8001), 8000), 1, "x")
    assert caught.value.status == 413


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"RIFF",
        b"no sound",
        encode_audio(np.zeros(0), 8000),
        encode_audio(np.zeros((100, 17)), 8000),
        encode_audio(np.array([np.nan] * 9, np.float32), 8000, subtype="FLOAT"),
        encode_audio(np.zeros(100), 500),
    ],
    ids=["nothing", "cut", "text", "no samples", "too many channels", "not finite", "too low a rate"],
)
def test_what_is_no_recording_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        decode_audio(body, 10, "x")
    assert caught.value.status == 400


def test_a_recording_that_cannot_be_sought_in_is_read() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(4000) / 10), 8000, format="WAV", subtype="G721_32")
    waveform, rate_hertz = decode_audio(buffer.getvalue(), 1, "x")
    assert (rate_hertz, len(waveform) >= 4000) == (8000, True)


WINDOWS = Speech(
    sample_rate_hertz=1000,
    window_samples=100,
    min_speech_milliseconds=200,
    min_silence_milliseconds=200,
    padding_milliseconds=0,
)


@pytest.mark.parametrize(
    ("probabilities", "segments"),
    [
        ([0, 0, 0], []),
        ([0, 1, 1, 0], [(0.1, 0.3)]),
        ([1, 1, 1], [(0.0, 0.3)]),
        ([0, 1, 0, 0, 0], []),
        ([1, 1, 0, 1, 1], [(0.0, 0.5)]),
        ([1, 1, 0, 0, 1, 1], [(0.0, 0.2), (0.4, 0.6)]),
        ([0.4, 0.5, 0.4, 0.4, 0.3], [(0.1, 0.4)]),
    ],
    ids=["silence", "one", "all of it", "too short", "a short pause joins", "a long pause parts", "hysteresis"],
)
def test_segments(probabilities: list[float], segments: list[tuple[float, float]]) -> None:
    found = find_segments(np.array(probabilities, np.float32), len(probabilities) / 10, WINDOWS)
    assert [(segment.start_s, segment.end_s) for segment in found] == segments


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60),
    st.integers(0, 500),
    st.integers(0, 500),
    st.integers(0, 400),
)
def test_segments_are_in_order_inside_the_recording_and_apart(
    probabilities: list[float], speech_ms: int, silence_ms: int, padding_ms: int
) -> None:
    options = Speech(
        sample_rate_hertz=1000,
        window_samples=100,
        min_speech_milliseconds=speech_ms,
        min_silence_milliseconds=silence_ms,
        padding_milliseconds=padding_ms,
    )
    duration_s = len(probabilities) / 10 - 0.03
    found = find_segments(np.array(probabilities, np.float32), duration_s, options)
    times = [time for segment in found for time in (segment.start_s, segment.end_s)]
    assert times == sorted(times)
    assert all(0 <= time <= duration_s + 1e-3 for time in times)


def test_recordings_are_parts_of_whole_windows_and_the_module_must_answer_for_each() -> None:
    task = SpeechTask(Speech())
    work = task.prepare(
        [bytes_tensor([encode_audio(tone(100, 16000, 0.1), 16000), encode_audio(tone(100, 8000), 8000)])]
    )
    assert [part[0].shape for part in work.parts] == [(1, 2048), (1, 16384)]
    assert work.notes == [0.1, 1.0]
    with pytest.raises(StartError, match="one probability a window"):
        task.learn([np.zeros((1, 3), np.float32)])
    with pytest.raises(StartError, match="probabilities are 0 to 1"):
        task.learn([np.full((1, 8), 3.0, np.float32)])
