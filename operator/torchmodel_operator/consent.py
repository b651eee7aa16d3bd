"""What a TorchModel that is valid by `spec` may still not ask of this cluster. Pure; called by `reconcile`.

These are no rules of `spec`, which the `torchmodel` command shares: on the user's own machine a path relative to the manifest
has a meaning, and whoever starts `torchmodel run` consents to code there.
"""

from __future__ import annotations

from torchmodel_runtime.config import CODE_NOT_ALLOWED

from torchmodel_operator.errors import SpecError
from torchmodel_operator.settings import OperatorSettings
from torchmodel_operator.spec import Model


def check_location(model: Model) -> None:
    """Refuse a checkpoint that lies beside the manifest. Raises SpecError."""
    uri = model.spec.checkpoint.uri
    if uri.startswith("file:") and not uri.startswith("file:///"):
        raise SpecError(
            f"spec.checkpoint.uri: got {uri!r}, which is relative to a manifest; a cluster has no such place",
            "upload the checkpoint and give its s3:// or https:// address, or a file:/// path in the serving image.",
        )


def check_consent(model: Model, settings: OperatorSettings) -> None:
    """Refuse code that comes with a model where the operator was installed without consent to it. Raises SpecError."""
    asks_for_code = model.spec.security.allow_code_execution or model.spec.architecture.source is not None
    if asks_for_code and not settings.allow_code_execution:
        raise SpecError(
            "spec.security.allowCodeExecution: got true, but this operator was installed without consent to run code that "
            "comes with a model",
            "have an administrator set the chart value allowCodeExecution=true, or build the class into spec.image and remove "
            "spec.architecture.source and spec.security.allowCodeExecution.",
            CODE_NOT_ALLOWED,
        )
