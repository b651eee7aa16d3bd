"""`torchmodel predict`: what its first argument means."""

from pathlib import Path

import pytest
from torchmodel_cli.bodies import BadUse
from torchmodel_cli.prediction import find_endpoint


@pytest.mark.parametrize(
    ("target", "advice"),
    [
        pytest.param("127.0.0.1:8080", "give http://127.0.0.1:8080", id="an address without http"),
        pytest.param("localhost", "give http://localhost", id="this machine's name"),
        pytest.param("linear", "give a URL", id="the name of a model that nobody serves"),
    ],
)
def test_a_name_that_is_not_served_is_told_how_to_go_on(
    target: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BadUse, match=f"no model '{target}' is served .*; {advice}$"):
        find_endpoint(target, None)
