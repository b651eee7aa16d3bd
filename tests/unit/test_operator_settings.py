"""Settings: read once, every mistake named."""

from __future__ import annotations

import pytest
from torchmodel_operator.settings import VARIABLES, OperatorSettings, SettingsError, parse_settings

REQUIRED = {"TORCHMODEL_RUNTIME_IMAGE": "runtime:1", "POD_NAMESPACE": "system", "POD_NAME": "operator-0"}


def test_defaults() -> None:
    assert parse_settings(REQUIRED | {"PATH": "/bin"}) == OperatorSettings(
        runtime_image="runtime:1", lease_namespace="system", pod_name="operator-0"
    )


def test_everything() -> None:
    given = {
        "TORCHMODEL_NAMESPACES": "b, a,,b",
        "TORCHMODEL_ALLOW_CODE_EXECUTION": "true",
        "TORCHMODEL_LEASE_NAMESPACE": "elsewhere",
        "TORCHMODEL_WORKERS": "4",
        "TORCHMODEL_KUBE_QPS": "5",
        "TORCHMODEL_PROBE_PORT": "9000",
        "TORCHMODEL_LOG_LEVEL": "debug",
    }
    settings = parse_settings(REQUIRED | given)
    assert settings.namespaces == ("a", "b")
    assert settings.allow_code_execution
    assert settings.lease_namespace == "elsewhere"
    assert (settings.workers, settings.kube_qps, settings.probe_port, settings.log_level) == (4, 5, 9000, "debug")
    assert set(given) | {"TORCHMODEL_RUNTIME_IMAGE"} == set(VARIABLES)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        pytest.param({"TORCHMODEL_WORKER": "4"}, "TORCHMODEL_WORKER: no such setting", id="unknown"),
        pytest.param({"TORCHMODEL_WORKERS": "0"}, "got '0', must be a whole number from 1 to 64", id="out of range"),
        pytest.param({"TORCHMODEL_WORKERS": "many"}, "got 'many'", id="no number"),
        pytest.param({"TORCHMODEL_ALLOW_CODE_EXECUTION": "yes"}, "got 'yes', must be true or false", id="no boolean"),
        pytest.param({"TORCHMODEL_LOG_LEVEL": "loud"}, "must be one of debug, info", id="no level"),
        pytest.param({"TORCHMODEL_RUNTIME_IMAGE": ""}, "TORCHMODEL_RUNTIME_IMAGE: must be set", id="no image"),
        pytest.param({"POD_NAMESPACE": ""}, "TORCHMODEL_LEASE_NAMESPACE: must be set", id="no namespace"),
    ],
)
def test_mistakes_are_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_settings(REQUIRED | environ)
