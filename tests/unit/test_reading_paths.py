"""CONTRIBUTING's two reading paths name what is there: whoever renames a step there renames it here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATHS = {
    "TorchModel applied → status": "operator/torchmodel_operator",
    "Request → response": "runtime/torchmodel_runtime",
}


def names_in(package: Path) -> set[str]:
    """Modules, classes and functions of a package, by their last name."""
    found = set()
    for file in package.rglob("*.py"):
        found |= {file.stem, file.parent.name}
        found |= set(re.findall(r"^\s*(?:async )?(?:def|class) (\w+)", file.read_text(), re.MULTILINE))
    return found


@pytest.mark.parametrize(("title", "package"), PATHS.items())
def test_every_step_of_a_reading_path_is_in_the_code(title: str, package: str) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = re.findall(rf"\*\*{title}\.\*\*(.*?)(?=\n\*\*|\n## )", text, re.DOTALL)[0]
    named = re.findall(r"`([A-Za-z_]\w*(?:\.\w+)*)`", section)
    assert len(named) > 15
    there = names_in(ROOT / package)
    assert [name for name in named if not set(name.split(".")) <= there] == []
