"""What a checkpoint URI means: which source, which object, which file name, and how it may be shown.

Pure: text in, frozen values out. A URI comes from whoever may write a TorchModel, and object keys come from whoever may
write a bucket, so both are checked here before any of them becomes a path or a request.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from torchmodel_runtime.config import CHECKPOINT_INVALID, CONFIG_INVALID, RECEIPT_FILE
from torchmodel_runtime.fetch.errors import FetchError

ALLOWED_SCHEMES = ("file", "http", "https", "s3")

NAME_LIMIT = 128
"""Characters of a file name made from a URI; file systems allow 255 bytes, the rest is room for suffixes."""

PATH_LIMIT = 1024
"""Characters of a relative path inside a folder; S3 keys end at 1024 bytes."""


@dataclass(frozen=True)
class DiskLocation:
    """A file or folder that this process can already read."""

    path: str
    name: str


@dataclass(frozen=True)
class WebLocation:
    """One file behind http or https; `authorization` is what stood as user:password in the URI."""

    url: str
    name: str
    authorization: str | None = None


@dataclass(frozen=True)
class BucketLocation:
    """One object, or all objects below a prefix, of an S3 bucket; the key has no slash at its ends."""

    bucket: str
    key: str
    is_folder: bool
    name: str


Location = DiskLocation | WebLocation | BucketLocation


def parse_location(uri: str) -> Location:
    """Turn a checkpoint URI into a location; raises FetchError ConfigInvalid for what cannot be fetched."""
    if not uri or any(ord(letter) < 0x20 or ord(letter) == 0x7F for letter in uri):
        raise _invalid("checkpoint.uri: empty, or it holds a control character")
    if uri.startswith("/"):
        return _disk_location(uri)
    scheme, separator, rest = uri.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in ALLOWED_SCHEMES:
        shown = scheme if separator and re.fullmatch(r"[a-z][a-z0-9+.-]{0,31}", scheme) else "no known scheme"
        allowed = ", ".join(f"{name}://" for name in ALLOWED_SCHEMES)
        raise _invalid(f"checkpoint.uri: got {shown}, allowed are {allowed} and an absolute path")
    if scheme == "file":
        return _file_uri_location(rest)
    if scheme == "s3":
        return _bucket_location(rest)
    return _web_location(uri)


def redact_uri(uri: str) -> str:
    """The URI as it may be logged and kept: without user and password, query and fragment."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme.lower() == "file":
        return uri
    end = min((place for place in map(rest.find, "/?#") if place >= 0), default=len(rest))
    authority, tail = rest[:end], rest[end:]
    if "@" in authority:
        authority = "redacted@" + authority.rpartition("@")[2]
    path = re.split(r"[?#]", tail, maxsplit=1)[0]
    return f"{scheme}://{authority}{path}{'?redacted' if path != tail else ''}"


def make_safe_name(segment: str) -> str:
    """A file name from the last segment of a URI: one path component, no hidden file, not the receipt's name."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", segment).lstrip(".")
    if len(name) > NAME_LIMIT:
        stem, dot, suffix = name.rpartition(".")
        name = stem[: NAME_LIMIT - len(suffix) - 1] + dot + suffix if dot and len(suffix) <= 16 else name[:NAME_LIMIT]
    if not name.strip("_"):
        return "checkpoint"
    return f"checkpoint-{name}" if name == RECEIPT_FILE else name


def check_relative_path(path: str) -> str:
    """Return a path inside a fetched folder unchanged; raises FetchError CheckpointInvalid if it could leave the folder."""
    segments = path.split("/")
    if (
        len(path) > PATH_LIMIT
        or any(segment in ("", ".", "..") or len(segment.encode("utf-8", "replace")) > 255 for segment in segments)
        or "\\" in path
        or any(ord(letter) < 0x20 or 0x7F <= ord(letter) < 0xA0 or 0xD800 <= ord(letter) < 0xE000 for letter in path)
    ):
        raise FetchError(
            CHECKPOINT_INVALID,
            f"the checkpoint folder holds {path[:200]!r}, which is not a safe relative path: "
            "no '..', '.', empty part, backslash or control character is allowed, "
            f"at most {PATH_LIMIT} characters, 255 bytes a part",
            "Rename or remove that object.",
        )
    return path


def _disk_location(path: str) -> DiskLocation:
    if ".." in path.split("/"):
        raise _invalid("checkpoint.uri: '..' is not allowed in a path")
    return DiskLocation(path=path, name=make_safe_name(path.rstrip("/").rpartition("/")[2]))


def _file_uri_location(rest: str) -> DiskLocation:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise _invalid(
            "checkpoint.uri: a file URI needs an absolute path and no host, for example file:///models/a.pth"
        )
    path = unquote(path, errors="surrogateescape")
    if "\0" in path:
        raise _invalid("checkpoint.uri: a path must not hold a NUL character")
    return _disk_location("/" + path)


def _web_location(uri: str) -> WebLocation:
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise _invalid("checkpoint.uri: the host or port cannot be read") from None
    if not host:
        raise _invalid("checkpoint.uri: no host")
    if parts.path.endswith("/") or not parts.path:
        raise _invalid(
            f"checkpoint.uri: {redact_uri(uri)} names no file; folders can be fetched from s3:// and file://, "
            "over http name one file"
        )
    authorization = None
    user_info, at, address = parts.netloc.rpartition("@")
    if at:
        plain = unquote(user_info).encode()
        authorization = "Basic " + base64.b64encode(plain if b":" in plain else plain + b":").decode()
    return WebLocation(
        url=parts._replace(netloc=address, fragment="").geturl(),
        name=make_safe_name(unquote(parts.path.rpartition("/")[2])),
        authorization=authorization,
    )


def _bucket_location(rest: str) -> BucketLocation:
    bucket, _, key = rest.partition("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]", bucket):
        raise _invalid("checkpoint.uri: the bucket name must be 3 to 255 letters, digits, dots, hyphens or underscores")
    is_folder = key.endswith("/") or not key
    key = key[:-1] if key.endswith("/") else key
    if key and any(segment in ("", ".", "..") for segment in key.split("/")):
        raise _invalid("checkpoint.uri: an s3 key must not have empty parts, '.' or '..' between its slashes")
    return BucketLocation(
        bucket=bucket, key=key, is_folder=is_folder, name=make_safe_name(key.rpartition("/")[2] or bucket)
    )


def _invalid(message: str) -> FetchError:
    return FetchError(CONFIG_INVALID, message, "Correct spec.checkpoint.uri.")
