"""Protocol buffers' wire format, as far as a message is looked at before it is parsed. Called by `v2messages` and `v2contents`.

A parser makes of two bytes an object of a hundred, and of each tensor a copy. So what is large or many is taken out of a message
here, as views of its bytes, and the parser gets the small rest. The rules are those of "Encoding" in protobuf's documentation: a
field is a tag (number and kind) and its content; a number may come again, in any order. Pure; knows no message.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
"""Kinds of content. 3 and 4 are groups, which proto3 does not have."""

MAX_VARINT_BYTES = 10
"""Of 7 bits each, for 64."""

_WINDOW_BYTES = 1 << 20
"""Numbers are decoded by pieces, so that what they are decoded with stays small."""


class WireError(ValueError):
    """The bytes are no message; says what is wrong at which byte."""


class TooManyFieldsError(WireError):
    """More fields than the caller wants to look at."""


Field = tuple[int, int, int, int, int]
"""Number, kind; its first byte, the first after its tag and length, the first after it. Plain, because there may be millions."""


def walk(message: memoryview, most: int) -> Iterator[Field]:
    """The fields of a message, in their order. WireError where it is none; TooManyFieldsError after `most` of them."""
    position = count = start = 0
    end = len(message)
    try:
        while position < end:
            start = position
            count += 1
            if count > most:
                raise TooManyFieldsError(f"more than {most} fields")
            tag = message[position]
            position += 1
            if tag > 0x7F:
                tag, position = _read_varint(message, start)
            kind = tag & 7
            content_from = position
            if kind == LENGTH:
                length = message[position]
                content_from += 1
                if length > 0x7F:
                    length, content_from = _read_varint(message, position)
                position = content_from + length
            elif kind == VARINT:
                position = _read_varint(message, position)[1]
            elif kind == FIXED32:
                position += 4
            elif kind == FIXED64:
                position += 8
            else:
                raise WireError(f"byte {start} begins a field of kind {kind}")
            if position > end:
                raise WireError(f"the field at byte {start} ends after the {end} bytes that there are")
            yield tag >> 3, kind, start, content_from, position
    except IndexError:
        raise WireError(f"the field at byte {start} ends after the {end} bytes that there are") from None


def take_fields(message: memoryview, wanted: Collection[int], most: int) -> tuple[bytes, list[tuple[int, memoryview]]]:
    """The message without the wanted fields, and number and content of those, in their order.

    WireError, also for a wanted field that is a number; TooManyFieldsError for more than `most` fields in all.
    """
    taken: list[tuple[int, memoryview]] = []
    kept: list[memoryview] = []
    kept_from = 0
    for number, kind, start, content_from, end in walk(message, most):
        if number in wanted:
            if kind != LENGTH:
                raise WireError(f"field {number} at byte {start} is a number")
            taken.append((number, message[content_from:end]))
            kept.append(message[kept_from:start])
            kept_from = end
    kept.append(message[kept_from:])
    return b"".join(kept), taken


def write_field(number: int, content: bytes) -> tuple[bytes, bytes]:
    """A field of kind LENGTH, as the bytes before the content and the content."""
    head = bytearray()
    for value in (number << 3 | LENGTH, len(content)):
        while value > 0x7F:
            head.append(value & 0x7F | 0x80)
            value >>= 7
        head.append(value)
    return bytes(head), content


def count_numbers(packed: bytes | bytearray | memoryview) -> int:
    """How many numbers a packed field of varints holds: each ends with its one byte below 128."""
    return sum(int(np.count_nonzero(window < 0x80)) for window in _windows(packed))


def decode_numbers(packed: bytes | bytearray | memoryview, count: int) -> np.ndarray:
    """The varints of a packed field as uint64, negative ones as their two's complement. count: as `count_numbers` says.

    WireError for a number that is longer than 64 bits or not whole.
    """
    numbers = np.empty(count, np.uint64)
    done = position = 0
    whole = np.frombuffer(packed, np.uint8)
    while position < len(whole):
        window = whole[position : position + _WINDOW_BYTES]
        ends = np.flatnonzero(window < 0x80)
        if not len(ends):
            raise WireError("a number is not whole")
        numbers[done : done + len(ends)] = _join_bytes(window, ends)
        done += len(ends)
        position += int(ends[-1]) + 1
    return numbers


def _join_bytes(window: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The numbers that end at these bytes of the window, low bits first."""
    if len(ends) == ends[-1] + 1:  # one byte each
        return window[: len(ends)]
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    longest = int(lengths.max())
    if longest > MAX_VARINT_BYTES:
        raise WireError(f"a number of {longest} bytes, at most {MAX_VARINT_BYTES} make one")
    numbers = np.zeros(len(ends), np.uint64)
    for index in range(longest):
        here = lengths > index
        bits = (window[starts[here] + index] & 0x7F).astype(np.uint64)
        numbers[here] |= bits << np.uint64(7 * index)
    return numbers


def _windows(packed: bytes | bytearray | memoryview) -> list[np.ndarray]:
    whole = np.frombuffer(packed, np.uint8)
    return [whole[start : start + _WINDOW_BYTES] for start in range(0, len(whole), _WINDOW_BYTES)]


def _read_varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number and the byte after it. IndexError where the message ends inside it."""
    value = message[position]
    position += 1
    if value < 0x80:
        return value, position
    value &= 0x7F
    for shift in range(7, 7 * MAX_VARINT_BYTES, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise WireError(f"the number before byte {position} is longer than {MAX_VARINT_BYTES} bytes")
