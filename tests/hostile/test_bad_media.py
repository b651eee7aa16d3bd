"""Models of pictures, recordings and texts: bombs, lies and damage are refused, and neighbours answered."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from hostile.asking import failures_inside, refuse_both_ways, table
from hostile.attack import Attack
from hostile.attacks import images, recordings, texts
from testkit.media_files import picture, recording
from testkit.runtime_process import RuntimeProcess
from testkit.tiny_media import serve_images, serve_speech, serve_texts
from torchmodel_runtime.config import Limits, Serving

NARROW = Serving(
    processes=1, workers=1, threads=1, max_request_bytes=8 << 20, limits=Limits(max_bytes_in_flight=256 << 20)
)
"""A pod with little memory."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    with RuntimeProcess(serve_images(tmp_path_factory.mktemp("pictures"))) as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    with RuntimeProcess(serve_speech(tmp_path_factory.mktemp("speech"))) as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    with RuntimeProcess(serve_texts(tmp_path_factory.mktemp("texts"), serving=NARROW)) as process:
        yield process.wait_ready()


@table(images.ATTACKS)
def test_bad_pictures(pictures: RuntimeProcess, attack: Attack) -> None:
    refuse_both_ways(pictures, attack)
    status, answer = pictures.post("/v2/models/pictures/infer", picture(), "image/png")
    assert (status, answer["outputs"][0]["data"]) == (200, ["grey", "red"])


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pictures_of_every_format_are_still_taken(pictures: RuntimeProcess, kind: str) -> None:
    status, answer = pictures.post("/predictions/pictures", picture(kind), f"image/{kind.lower()}")
    assert (status, list(answer)) == (200, ["grey", "red"])


@table(recordings.ATTACKS)
def test_bad_recordings(speech: RuntimeProcess, attack: Attack) -> None:
    refuse_both_ways(speech, attack)
    status, answer = speech.post("/predictions/speech", recording(), "audio/wav")
    assert (status, answer) == (200, {"segments": [{"start": 0.226, "end": 0.798}], "duration_seconds": 1.0})


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "AIFF"])
def test_recordings_of_every_format_are_still_taken(speech: RuntimeProcess, kind: str) -> None:
    row = {"b64": base64.b64encode(recording(kind)).decode()}
    status, answer = speech.post("/v1/models/speech:predict", {"instances": [row]})
    assert (status, len(answer["predictions"][0]["segments"])) == (200, 1)


@pytest.fixture(scope="module")
def embedded(embedding: RuntimeProcess) -> Any:
    status, answer = embedding.post("/predictions/texts", b"the dog runs", "text/plain")
    assert status == 200
    return answer


@table(texts.ATTACKS)
def test_bad_texts(embedding: RuntimeProcess, embedded: Any, attack: Attack) -> None:
    refuse_both_ways(embedding, attack)
    assert embedding.post("/predictions/texts", b"the dog runs", "text/plain") == (200, embedded)


def test_no_attack_was_a_failure_inside(
    pictures: RuntimeProcess, speech: RuntimeProcess, embedding: RuntimeProcess
) -> None:
    assert [line for server in (pictures, speech, embedding) for line in failures_inside(server)] == []
