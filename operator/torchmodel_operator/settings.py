"""The operator's settings: read from the environment once by `__main__`, frozen, and passed down.

The Helm chart renders exactly these variables. One that begins with TORCHMODEL_ and is not listed here is an error, so a
misspelt setting never goes unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

T = TypeVar("T")

PREFIX: Final = "TORCHMODEL_"
VARIABLES: Final = (
    "TORCHMODEL_RUNTIME_IMAGE",
    "TORCHMODEL_NAMESPACES",
    "TORCHMODEL_ALLOW_CODE_EXECUTION",
    "TORCHMODEL_LEASE_NAMESPACE",
    "TORCHMODEL_WORKERS",
    "TORCHMODEL_KUBE_QPS",
    "TORCHMODEL_PROBE_PORT",
    "TORCHMODEL_LOG_LEVEL",
)
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


class SettingsError(Exception):
    """A setting is missing, unknown or unreadable; the message names the variable, what was given and what is allowed."""


@dataclass(frozen=True, kw_only=True)
class OperatorSettings:
    """What the person who installed the operator decided."""

    runtime_image: str
    """TORCHMODEL_RUNTIME_IMAGE: image of fetcher and server where a TorchModel names none. Required."""
    namespaces: tuple[str, ...] = ()
    """TORCHMODEL_NAMESPACES: exact names, separated by commas, to serve TorchModels in. Default: empty, all of them."""
    allow_code_execution: bool = False
    """TORCHMODEL_ALLOW_CODE_EXECUTION: true or false; the operator's consent to code that comes with a model."""
    lease_namespace: str
    """TORCHMODEL_LEASE_NAMESPACE: where the Lease of the leader lives. Default: POD_NAMESPACE. One of them is required."""
    pod_name: str
    """POD_NAME: this replica's name, in the Lease and in Events. Default: HOSTNAME, or torchmodel-operator."""
    workers: int = 16
    """TORCHMODEL_WORKERS: TorchModels reconciled at the same time, 1 to 64."""
    kube_qps: int = 50
    """TORCHMODEL_KUBE_QPS: calls a second to the API server, 1 to 1000; bursts of twice that are let through."""
    probe_port: int = 8081
    """TORCHMODEL_PROBE_PORT: TCP port of /healthz, /readyz and /metrics, 1 to 65535."""
    log_level: str = "info"
    """TORCHMODEL_LOG_LEVEL: debug, info, warning or error."""


def parse_settings(environ: Mapping[str, str]) -> OperatorSettings:
    """Turn environment variables into settings. Raises SettingsError: end the process and show it."""
    unknown = sorted(name for name in environ if name.startswith(PREFIX) and name not in VARIABLES)
    if unknown:
        raise SettingsError(f"{', '.join(unknown)}: no such setting; the settings are {', '.join(VARIABLES)}")

    def read(variable: str, parse: Callable[[str, str], T], default: T) -> T:
        text = environ.get(variable, "").strip()
        return parse(variable, text) if text else default

    runtime_image = environ.get("TORCHMODEL_RUNTIME_IMAGE", "").strip()
    if not runtime_image:
        raise SettingsError(
            "TORCHMODEL_RUNTIME_IMAGE: must be set to the runtime image, for example example.com/torchmodel-runtime:0.1"
        )
    lease_namespace = environ.get("TORCHMODEL_LEASE_NAMESPACE") or environ.get("POD_NAMESPACE") or ""
    if not lease_namespace:
        raise SettingsError(
            "TORCHMODEL_LEASE_NAMESPACE: must be set, or POD_NAMESPACE, to the namespace of the leader's Lease"
        )
    return OperatorSettings(
        runtime_image=runtime_image,
        namespaces=read("TORCHMODEL_NAMESPACES", _parse_names, ()),
        allow_code_execution=read("TORCHMODEL_ALLOW_CODE_EXECUTION", _parse_boolean, False),
        lease_namespace=lease_namespace,
        pod_name=environ.get("POD_NAME") or environ.get("HOSTNAME") or "torchmodel-operator",
        workers=read("TORCHMODEL_WORKERS", _parse_range(1, 64), 16),
        kube_qps=read("TORCHMODEL_KUBE_QPS", _parse_range(1, 1000), 50),
        probe_port=read("TORCHMODEL_PROBE_PORT", _parse_range(1, 65535), 8081),
        log_level=read("TORCHMODEL_LOG_LEVEL", _parse_level, "info"),
    )


def _parse_names(_: str, text: str) -> tuple[str, ...]:
    return tuple(sorted({name for part in text.split(",") if (name := part.strip())}))


def _parse_boolean(variable: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise SettingsError(f"{variable}: got {text!r}, must be true or false")
    return text == "true"


def _parse_level(variable: str, text: str) -> str:
    if text not in LOG_LEVELS:
        raise SettingsError(f"{variable}: got {text!r}, must be one of {', '.join(LOG_LEVELS)}")
    return text


def _parse_range(low: int, high: int) -> Callable[[str, str], int]:
    def parse(variable: str, text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise SettingsError(f"{variable}: got {text!r}, must be a whole number from {low} to {high}")
        return int(text)

    return parse
