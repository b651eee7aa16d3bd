"""Credentials of a fetch: one file per key from a mounted Secret, or the AWS names from the environment.

Called once by `fetcher`. A folder, where given, is the only source: nothing from the environment is mixed in. Values are
never shown; every message here names keys and files only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from torchmodel_runtime.config import CREDENTIALS_INVALID
from torchmodel_runtime.fetch.errors import FetchError
from torchmodel_runtime.fetch.locations import BucketLocation, Location, WebLocation

ACCESS_KEY = "AWS_ACCESS_KEY_ID"
SECRET_KEY = "AWS_SECRET_ACCESS_KEY"  # noqa: S105 - the name of a setting
SESSION_TOKEN = "AWS_SESSION_TOKEN"  # noqa: S105 - the name of a setting
REGION = "AWS_REGION"
ENDPOINT = "AWS_ENDPOINT_URL"
AUTHORIZATION = "authorization"
CA_FILE = "ca.crt"

AWS_NAMES = (ACCESS_KEY, SECRET_KEY, SESSION_TOKEN, REGION, ENDPOINT)
ALLOWED_NAMES = (*AWS_NAMES, AUTHORIZATION, CA_FILE)

WORKLOAD_IDENTITY_NAMES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)
"""Set in the pod by EKS (IRSA and Pod Identity) or ECS; then the S3 client finds keys by itself."""

VALUE_LIMIT_BYTES = 64 * 1024
"""A Secret holds at most 1 MiB in all; no single credential is near this, a CA bundle may be."""


@dataclass(frozen=True)
class Credentials:
    """What a source may use; empty fields were not given. Kept out of repr, so that no log line can show it."""

    access_key_id: str = field(default="", repr=False)
    secret_access_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    region: str = ""
    endpoint: str = field(default="", repr=False)
    authorization: str = field(default="", repr=False)
    ca_certificates: str = ""
    has_workload_identity: bool = False


def read_credentials(folder: str | None, environment: Mapping[str, str], location: Location) -> Credentials:
    """Read the folder, or without one the AWS names of the environment; raises FetchError CredentialsInvalid."""
    if folder is None:
        values = {name: environment[name].strip() for name in AWS_NAMES if environment.get(name, "").strip()}
        has_identity = any(environment.get(name) for name in WORKLOAD_IDENTITY_NAMES)
        return parse_credentials(values, has_workload_identity=has_identity, where="environment")
    values = _read_folder(Path(folder))
    usable = _names_for(location)
    if usable and not any(name in values for name in usable):
        raise _invalid(
            f"none of the given keys ({', '.join(sorted(values)) or 'none'}) is of use for this URI",
            f"Give at least one of: {', '.join(usable)}.",
        )
    return parse_credentials(values, has_workload_identity=False, where="Secret")


def parse_credentials(values: Mapping[str, str], *, has_workload_identity: bool, where: str) -> Credentials:
    """Check the values against each other and make them one frozen object; raises FetchError CredentialsInvalid."""
    for name, value in values.items():
        if not value:
            raise _invalid(f"{name} in the {where} is empty", "Give it a value or leave it out.")
        if name != CA_FILE and any(not " " <= letter <= "~" for letter in value):
            raise _invalid(
                f"{name} in the {where} holds a line break or another character that is not printable ASCII",
                "Write the value as one line of ASCII.",
            )
    has_key, has_secret = ACCESS_KEY in values, SECRET_KEY in values
    if has_key != has_secret or (SESSION_TOKEN in values and not has_key):
        missing = SECRET_KEY if has_key else ACCESS_KEY
        raise _invalid(f"{missing} is missing in the {where}", f"Give {ACCESS_KEY} and {SECRET_KEY} together.")
    endpoint = values.get(ENDPOINT, "")
    if endpoint and not _is_endpoint(endpoint):
        raise _invalid(
            f"{ENDPOINT} in the {where} is not http(s)://host[:port] without user, query and fragment",
            "Write it like https://s3.eu-central-1.amazonaws.com or http://minio.storage.svc:9000.",
        )
    return Credentials(
        access_key_id=values.get(ACCESS_KEY, ""),
        secret_access_key=values.get(SECRET_KEY, ""),
        session_token=values.get(SESSION_TOKEN, ""),
        region=values.get(REGION, ""),
        endpoint=endpoint.rstrip("/"),
        authorization=values.get(AUTHORIZATION, ""),
        ca_certificates=values.get(CA_FILE, ""),
        has_workload_identity=has_workload_identity,
    )


def _read_folder(folder: Path) -> dict[str, str]:
    try:
        # a mounted Secret holds ..data and ..2026_11_23 beside the links named after its keys
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith(".."))
        unknown = [path.name for path in paths if path.name not in ALLOWED_NAMES]
        if unknown:
            raise _invalid(
                f"unknown keys in the credentials folder: {', '.join(name[:64] for name in unknown[:10])}",
                f"Allowed are: {', '.join(ALLOWED_NAMES)}.",
            )
        return {path.name: _read_value(path) for path in paths}
    except OSError as error:
        raise _invalid(
            f"the credentials folder cannot be read: {error.strerror}", "Check that the Secret is mounted."
        ) from None


def _read_value(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(VALUE_LIMIT_BYTES + 1)
    if len(content) > VALUE_LIMIT_BYTES:
        raise _invalid(f"{path.name} is larger than {VALUE_LIMIT_BYTES} bytes", "Give the credential itself.")
    try:
        return content.decode().strip()
    except UnicodeDecodeError:
        raise _invalid(
            f"{path.name} is not UTF-8 text", "Give the credential itself, not base64 or binary data."
        ) from None


def _names_for(location: Location) -> tuple[str, ...]:
    if isinstance(location, BucketLocation):
        return (*AWS_NAMES, CA_FILE)
    return (AUTHORIZATION, CA_FILE) if isinstance(location, WebLocation) else ()


def _is_endpoint(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    unwanted = parts.username or parts.password or parts.query or parts.fragment
    return parts.scheme in ("http", "https") and bool(host) and " " not in endpoint and not unwanted


def _invalid(message: str, next_step: str) -> FetchError:
    return FetchError(CREDENTIALS_INVALID, f"credentials: {message}", next_step)
