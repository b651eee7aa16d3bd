"""Helm for tests: finds or builds the program, and calls it apart from the caller's own Helm settings."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "torchmodel-operator"
BUILD_TOOLS = ROOT / "tests" / "cluster" / "build_tools.sh"

Manifest = dict[str, Any]


class HelmError(Exception):
    """Helm said no; the message is Helm's own."""


@functools.cache
def find_helm() -> str | None:
    """$HELM, the test cluster's Helm, `helm` on PATH, or one built with Go; None when there is no way to one."""
    built = (
        Path(subprocess.run([BUILD_TOOLS, "--dir"], check=True, capture_output=True, text=True).stdout.strip()) / "helm"
    )
    found = os.environ.get("HELM") or (str(built) if built.exists() else shutil.which("helm"))
    if found is None and shutil.which("go") is not None:
        subprocess.run([BUILD_TOOLS, "helm"], check=True)
        found = str(built)
    return found


UNAVAILABLE = "no helm: set HELM, put helm on PATH, or install Go to build it"


def helm(*arguments: str | Path, values: Mapping[str, Any] | None = None, kubeconfig: Path | None = None) -> str:
    """What a Helm command prints; `values` go in as a values file. Raises HelmError."""
    program = find_helm()
    if program is None:
        raise HelmError(UNAVAILABLE)
    with tempfile.TemporaryDirectory() as home:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HELM", "KUBE"))}
        environment |= {f"HELM_{kind}_HOME": f"{home}/{kind.lower()}" for kind in ("CACHE", "CONFIG", "DATA")}
        environment["KUBECONFIG"] = str(kubeconfig or "/dev/null")
        given = [] if values is None else ["--values", "-"]
        done = subprocess.run(
            [program, *map(str, arguments), *given],
            input=json.dumps(dict(values or {})), capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip
    if done.returncode != 0:
        raise HelmError(done.stderr.strip() or done.stdout)
    return done.stdout


def render(
    values: Mapping[str, Any] | None = None, *, release: str = "models", namespace: str = "system", chart: Path = CHART
) -> list[Manifest]:
    """The chart's objects with these values; rendered once for each of them, and the caller's to change."""
    text = _template(json.dumps(dict(values or {})), release, namespace, chart)
    # the C loader: the CustomResourceDefinition takes the one in Python a third of a second
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


@functools.cache
def _template(values: str, release: str, namespace: str, chart: Path) -> str:
    options = ("--namespace", namespace, "--kube-version", "1.31.0")
    return helm("template", release, chart, *options, values=json.loads(values))
