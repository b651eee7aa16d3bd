"""Every command line of the examples' and the manuals' pages works, and every example answers as torch does in process."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from testkit.doc_pages import blocks_of, commands_of, run_page
from testkit.local_run import command_environment

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ("linear", "image", "text", "speech")
PAGES = sorted(
    [
        *ROOT.glob("docs/tutorials/*.md"),
        *ROOT.glob("docs/how-to/*.md"),
        *ROOT.glob("examples/README.md"),
        *ROOT.glob("examples/*/README.md"),
    ]
)

SAID = {
    "linear": ("[5.99", "[1.50", "linear: 8 rows, largest difference"),
    "image": ("china.jpg is palace", "flower.jpg is daisy", "the same five classes in process: True"),
    "text": ("384 values", "text: 3 vectors of 384, largest difference"),
    "speech": ("2 segments of speech", "speech: 2 segments, largest difference"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs_as_its_page_says(name: str, tmp_path: Path) -> None:
    if name == "speech" and shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed: apt-get install espeak-ng")
    said = run_page(ROOT / "examples" / name / "README.md", ROOT, tmp_path)
    for text in SAID[name]:
        assert text in said


def test_the_first_tutorial_runs_from_top_to_bottom(tmp_path: Path) -> None:
    said = run_page(ROOT / "docs" / "tutorials" / "first-model.md", tmp_path, tmp_path)
    assert "row 0: [6" in said or "row 0: [5.99" in said
    assert "served" in said


def test_the_digests_of_the_how_to_are_those_of_the_manifests(tmp_path: Path) -> None:
    for name in ("linear", "text"):
        subprocess.run([sys.executable, ROOT / "examples" / name / "prepare.py"], check=True, capture_output=True)
    said = run_page(ROOT / "docs" / "how-to" / "pin-a-checkpoint.md", ROOT, tmp_path)
    manifest = yaml.safe_load((ROOT / "examples" / "text" / "torchmodel.yaml").read_text())
    assert manifest["spec"]["checkpoint"]["sha256"] in said


def test_every_page_with_commands_is_run_here() -> None:
    run = {"first-model.md", "pin-a-checkpoint.md", "README.md"}
    run.add("use-your-client.md")  # by test_clients_docs.py
    for page in PAGES:
        has_commands = any(block.language == "bash" for block in blocks_of(page))
        assert not has_commands or page.name in run, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_applies_to_a_cluster_is_a_valid_manifest(page: Path, tmp_path: Path) -> None:
    for block in blocks_of(page):
        for command in commands_of(block):
            if block.language == "console" and command.startswith("sed "):
                printed = subprocess.run(
                    ["bash", "-c", command.replace("kubectl apply -f -", "cat")],
                    cwd=ROOT,
                    capture_output=True,
                    check=True,
                ).stdout
                file = tmp_path / "applied.yaml"
                file.write_bytes(printed)
                checked = subprocess.run(
                    ["torchmodel", "validate", file], env=command_environment(tmp_path), capture_output=True, text=True
                )
                assert checked.returncode == 0, checked.stdout
                assert "note" not in checked.stdout, "the cluster could not read this address"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_speech_manifest_holds_the_same_code_as_vad_py() -> None:
    manifest = yaml.safe_load((ROOT / "examples" / "speech" / "torchmodel.yaml").read_text())
    assert manifest["spec"]["architecture"]["source"]["inline"] == (ROOT / "examples" / "speech" / "vad.py").read_text()


def test_the_demo_ends_by_itself_with_the_right_label(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "examples/demo.py", "--once"],
        cwd=ROOT,
        env=command_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Right: the photograph shows a palace." in done.stdout
    assert "Where to go next" in done.stdout
