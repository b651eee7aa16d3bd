"""The generated reference pages are those that the code gives today."""

import importlib.util
from pathlib import Path

import pytest

GENERATOR = Path("docs/generate_reference.py")


@pytest.mark.parametrize("page", ["torchmodel.md", "cli.md"])
def test_the_page_is_up_to_date(page: str) -> None:
    spec = importlib.util.spec_from_file_location("generate_reference", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    written = (GENERATOR.parent / "reference" / page).read_text()
    assert written == generator.PAGES[page](), "run: python docs/generate_reference.py"
