"""multipart/form-data (RFC 7578), as TorchServe's clients post files and values. Called by `codec`.

The field `data` is the body that would have been posted alone, and several of them are several; fields with the names of inputs
are those inputs. The parser is
python-multipart, which most Python servers use and keep well: it takes bytes, bounds each part's header, and never copies a
part before it is known where it ends. The standard library's parser is made for mail, and changes binary parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from torchmodel_runtime.config import Limits
from torchmodel_runtime.errors import invalid

DATA = "data"
"""TorchServe's field for the body."""

MAX_NAME_BYTES = 128
"""As of a tensor's name."""


@dataclass
class Part:
    """One field of a form."""

    name: str = ""
    content_type: str = ""
    """Media type in lower case, without parameters; empty where the part names none."""
    content: bytes = b""
    headers: dict[str, bytes] = field(default_factory=dict)


def read_form(content_type: str, body: bytes, limits: Limits) -> dict[str, list[Part]]:
    """The fields by name; content_type is the whole header. RequestError 400 for a damaged form, or a field twice but `data`."""
    try:
        _, options = parse_options_header(content_type.encode("utf-8", "surrogateescape"))
        boundary = options.get(b"boundary", b"")
        if not boundary:
            raise invalid("Content-Type multipart/form-data: has no boundary")
        collector = _Collector(limits)
        parser = MultipartParser(boundary, collector.callbacks())
        parser.write(body)
        parser.finalize()
    except (FormParserError, UnicodeError) as error:
        raise invalid(f"body: not a multipart form: {error}") from None
    if not collector.is_complete:
        raise invalid("body: the multipart form ends before its last boundary")
    return collector.parts


class _Collector:
    """What the parser calls; keeps the parts."""

    def __init__(self, limits: Limits) -> None:
        self.parts: dict[str, list[Part]] = {}
        self.is_complete = False
        self._limits = limits
        self._count = 0
        self._part = Part()
        self._pieces: list[bytes] = []
        self._header_name = b""
        self._header_value = b""

    def callbacks(self) -> Any:
        handlers: dict[str, Callable[..., None]] = {
            "on_part_begin": self._begin,
            "on_part_data": self._add_data,
            "on_part_end": self._end,
            "on_header_field": self._add_name,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_end": self._complete,
        }
        return handlers

    def _begin(self) -> None:
        self._count += 1
        if self._count > self._limits.max_tensors:
            limit = self._limits.max_tensors
            raise invalid(f"body: more than {limit} fields in the form (serving.limits.maxTensors)")
        self._part, self._pieces = Part(), []

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        self._part.headers[self._header_name.decode("latin-1").lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        part = self._part
        disposition, options = parse_options_header(part.headers.get("content-disposition", b""))
        name = options.get(b"name", b"")
        if disposition != b"form-data" or not 0 < len(name) <= MAX_NAME_BYTES:
            raise invalid('body: each part of the form needs Content-Disposition: form-data; name="..."')
        part.name = name.decode()
        if part.headers.get("content-transfer-encoding", b"binary").lower() not in (b"binary", b"7bit", b"8bit"):
            raise invalid(f"field {part.name!r}: Content-Transfer-Encoding must be binary (RFC 7578, 4.7)")
        part.content_type = part.headers.get("content-type", b"").split(b";")[0].strip().lower().decode("latin-1")
        if part.name in self.parts and part.name != DATA:
            raise invalid(f"field {part.name!r}: may appear once")

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])

    def _end(self) -> None:
        self._part.content = b"".join(self._pieces)
        self.parts.setdefault(self._part.name, []).append(self._part)

    def _complete(self) -> None:
        self.is_complete = True
