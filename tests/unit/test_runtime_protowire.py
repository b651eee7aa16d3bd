"""Messages taken apart as bytes: the same fields as the parser finds, and one case for each way of being no message."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchmodel_runtime.codec.protowire import (
    TooManyFieldsError,
    WireError,
    count_numbers,
    decode_numbers,
    take_fields,
    walk,
    write_field,
)
from torchmodel_runtime.protos.open_inference_pb2 import InferTensorContents, ModelInferRequest

U64 = st.integers(0, 2**64 - 1)


def varints(*numbers: int) -> bytes:
    """Packed, as the parser's own library writes them."""
    message = InferTensorContents(uint64_contents=numbers).SerializeToString()
    return b"".join(message[content_from:end] for _, _, _, content_from, end in walk(memoryview(message), 1))


requests = st.builds(
    ModelInferRequest,
    model_name=st.text(max_size=8),
    id=st.text(max_size=300),
    inputs=st.lists(
        st.builds(
            ModelInferRequest.InferInputTensor,
            name=st.text(max_size=4),
            shape=st.lists(st.integers(0, 2**40), max_size=4),
        ),
        max_size=4,
    ),
    raw_input_contents=st.lists(st.binary(max_size=300), max_size=4),
)


@given(requests)
def test_what_is_taken_and_what_is_left_make_the_whole(request: ModelInferRequest) -> None:
    rest, fields = take_fields(memoryview(request.SerializeToString()), (5, 7), 100)
    assert [bytes(content) for number, content in fields if number == 7] == list(request.raw_input_contents)
    inputs = [
        ModelInferRequest.InferInputTensor.FromString(bytes(content)) for number, content in fields if number == 5
    ]
    assert inputs == list(request.inputs)
    request.ClearField("inputs")
    request.ClearField("raw_input_contents")
    assert ModelInferRequest.FromString(rest) == request


@given(st.integers(1, 2**29 - 1), st.binary(max_size=300))
def test_a_field_that_is_written_is_read_again(number: int, content: bytes) -> None:
    message = memoryview(b"".join(write_field(number, content)))
    assert take_fields(message, (number,), 1) == (b"", [(number, content)])


@given(st.lists(st.one_of(U64, st.integers(0, 127)), max_size=40))
def test_numbers_are_those_that_were_packed(numbers: list[int]) -> None:
    packed = varints(*numbers)
    assert count_numbers(packed) == len(numbers)
    assert decode_numbers(packed, len(numbers)).tolist() == numbers


@pytest.mark.parametrize("number", [0, 127, 128, 2**63, 2**64 - 1])
def test_numbers_do_not_depend_on_the_pieces_in_which_they_are_decoded(number: int) -> None:
    one = varints(number)
    many = 2 * (1 << 20) // len(one) + 3
    packed = b"\x05" + one * many
    assert count_numbers(packed) == many + 1
    numbers = decode_numbers(packed, many + 1)
    assert numbers[0] == 5
    assert (numbers[1:] == np.uint64(number)).all()


def test_fields_of_every_kind_are_passed_over() -> None:
    varint, fixed64, text, fixed32 = b"\x08\xff\x01", b"\x11" + bytes(8), b"\x1a\x02hi", b"\x25" + bytes(4)
    message = varint + fixed64 + text + fixed32
    assert take_fields(memoryview(message), (3,), 4) == (varint + fixed64 + fixed32, [(3, b"hi")])
    assert [field[:2] for field in walk(memoryview(message), 4)] == [(1, 0), (2, 1), (3, 2), (4, 5)]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        pytest.param(b"\x80", "byte 0 ends after the 1 bytes", id="the tag is not whole"),
        pytest.param(b"\x1a", "byte 0 ends after the 1 bytes", id="there is no length"),
        pytest.param(b"\x1a\x02h", "byte 0 ends after the 3 bytes", id="the content is not whole"),
        pytest.param(b"\x08\x01\x08\xff", "byte 2 ends after the 4 bytes", id="the number is not whole"),
        pytest.param(b"\x25\x00\x00", "byte 0 ends after the 3 bytes", id="the four bytes are not whole"),
        pytest.param(b"\x21" + bytes(7), "byte 0 ends after the 8 bytes", id="the eight bytes are not whole"),
        pytest.param(b"\x1a" + b"\xff" * 9 + b"\x01", "ends after the 11 bytes", id="the length is beyond all memory"),
        pytest.param(b"\x08" + b"\xff" * 11, "longer than 10 bytes", id="the number is too long"),
        pytest.param(b"\x0b", "byte 0 begins a field of kind 3", id="it begins a group"),
        pytest.param(b"\x0e", "byte 0 begins a field of kind 6", id="of a kind that there is not"),
        pytest.param(b"\x38\x01", "field 7 at byte 0 is a number", id="a wanted field is a number"),
    ],
)
def test_what_is_no_message_is_told_with_its_place(message: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        take_fields(memoryview(message), (7,), 10)


def test_more_fields_than_wanted_are_not_looked_at() -> None:
    message = memoryview(b"\x2a\x00" * 10)
    assert len(take_fields(message, (5,), 10)[1]) == 10
    with pytest.raises(TooManyFieldsError, match="more than 9 fields"):
        take_fields(message, (5,), 9)


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        pytest.param(b"\x01" + b"\x80" * 10 + b"\x01", "a number of 11 bytes", id="longer than 64 bits"),
        pytest.param(b"\x01" + b"\x80" * 5, "not whole", id="not whole"),
        pytest.param(b"\x80" * ((1 << 20) + 1) + b"\x01", "not whole", id="longer than a piece"),
    ],
)
def test_numbers_that_are_none_are_refused(packed: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        decode_numbers(packed, count_numbers(packed))


@pytest.mark.parametrize("read", [lambda data: list(walk(data, 50)), lambda data: take_fields(data, (1, 5, 7), 50)])
@given(data=st.binary(max_size=60))
def test_any_bytes_are_a_message_or_told_not_to_be(read: Callable[[memoryview], object], data: bytes) -> None:
    try:
        read(memoryview(data))
    except WireError:
        return
