"""Writes what is derived from the chart: install/torchmodel-operator.yaml and the table in docs/reference/chart.md.

Run it after a change of the chart: `python install/render.py` (Helm is $HELM, or `helm` on PATH). tests/unit/test_chart.py
compares both files with what this gives.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "charts" / "torchmodel-operator"
MANIFEST = ROOT / "install" / "torchmodel-operator.yaml"
REFERENCE = ROOT / "docs" / "reference" / "chart.md"

RELEASE = "torchmodel-operator"
NAMESPACE = "torchmodel-system"
MANIFEST_HEAD = f"""\
# The TorchModel operator with the chart's default values, for clusters without Helm:
#   kubectl apply --server-side -f install/torchmodel-operator.yaml
# It names images that you build and make known to your nodes under these names (see docs/reference/chart.md).
# Rendered from charts/torchmodel-operator by install/render.py. Do not edit.
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    app.kubernetes.io/name: {RELEASE}
    pod-security.kubernetes.io/enforce: restricted
"""
HELM_ONLY = re.compile(r"^ *(app\.kubernetes\.io/managed-by|helm\.sh/chart): .*\n", re.MULTILINE)
"""Labels that say Helm looks after the object: it does not, here."""

TABLE_START, TABLE_END = "<!-- values: by install/render.py -->\n", "<!-- end of values -->\n"


class Value(NamedTuple):
    """One row of the table."""

    path: str
    default: Any
    description: str


def render_manifest(helm: str) -> str:
    """The plain manifest: the chart with its defaults, and the namespace it goes into."""
    options = ("--namespace", NAMESPACE, "--skip-tests", "--kube-version", "1.31.0")
    command = [helm, "template", RELEASE, str(CHART), *options]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return MANIFEST_HEAD + HELM_ONLY.sub("", text)


def read_values(text: str) -> list[Value]:
    """The documented values of a values.yaml, in its order: each key with a comment right above it."""
    defaults = yaml.safe_load(text)
    values: list[Value] = []
    keys: list[str] = []
    comment: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"( *)# ?(.*)", line):
            comment.append(match[2])
        elif match := re.match(r"( *)([A-Za-z]+):", line):
            keys = [*keys[: len(match[1]) // 2], match[2]]
            if comment:
                values.append(Value(".".join(keys), _at(defaults, keys), " ".join(comment)))
            comment = []
        else:
            comment = []
    return values


def render_table(values: list[Value]) -> str:
    """The values as a Markdown table."""
    rows = [
        f"| `{value.path}` | `{json.dumps(value.default)}` | {value.description.replace('|', chr(92) + '|')} |"
        for value in values
    ]
    return "\n".join(["| value | default | meaning |", "| --- | --- | --- |", *rows]) + "\n"


def with_table(page: str, table: str) -> str:
    """The page with the table in its place."""
    before, rest = page.split(TABLE_START)
    _, after = rest.split(TABLE_END)
    return before + TABLE_START + table + TABLE_END + after


def main() -> None:
    """Write both files."""
    MANIFEST.write_text(render_manifest(os.environ.get("HELM", "helm")))
    table = render_table(read_values((CHART / "values.yaml").read_text()))
    REFERENCE.write_text(with_table(REFERENCE.read_text(), table))


def _at(values: Any, keys: list[str]) -> Any:
    for key in keys:
        values = values[key]
    return values


if __name__ == "__main__":
    main()
