"""The generated messages are those of the .proto files, by the pinned compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torchmodel_runtime

RUNTIME = Path(torchmodel_runtime.__file__).parent.parent
PROTOS = RUNTIME / "torchmodel_runtime" / "protos"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("protos")
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={RUNTIME}", f"--python_out={folder}"]
    subprocess.run([*command, f"--pyi_out={folder}", *PROTOS.glob("*.proto")], check=True, capture_output=True)
    return folder / "torchmodel_runtime" / "protos"


def test_what_is_committed_is_what_the_compiler_makes_now(made: Path) -> None:
    names = sorted(path.name for path in made.iterdir())
    assert names == ["health_pb2.py", "health_pb2.pyi", "open_inference_pb2.py", "open_inference_pb2.pyi"]
    for name in names:
        assert (PROTOS / name).read_text() == (made / name).read_text(), f"{name} is stale: make proto"


def test_nothing_else_is_there(made: Path) -> None:
    assert {path.name for path in PROTOS.glob("*_pb2.py*")} == {path.name for path in made.iterdir()}
