"""Requests into one batch and its outputs back into answers: concatenated, or padded with a mask where lengths differ.

`forward.Engine` calls it around the module. Works on numpy arrays; knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from torchmodel_runtime.tasks import PaddingRule
from torchmodel_runtime.tensors import Arrays


class Joined(NamedTuple):
    """Several requests as one batch."""

    inputs: Arrays
    lengths: list[int]
    """Of each request's rows along axis 1, where some were padded; else empty."""
    mask: np.ndarray | None
    """bool (rows, longest), true on real positions, where some were padded."""


def join(requests: Sequence[Arrays], padding: PaddingRule | None) -> Joined:
    """One batch of all rows, in order. Without padding, or with equal lengths, the requests are only concatenated."""
    if padding is not None:
        first = padding.first
        lengths = [request[first].shape[1] for request in requests]
        if lengths.count(lengths[0]) != len(lengths):
            return _pad(requests, padding, lengths)
    return Joined([np.concatenate(column) for column in zip(*requests, strict=True)], [], None)


def split(requests: Sequence[Arrays], outputs: Arrays, lengths: Sequence[int], cut: Sequence[int]) -> list[Arrays]:
    """Each request's rows of the outputs; where lengths are given, axis 1 of the outputs `cut` is cut back to them."""
    answers: list[Arrays] = []
    start = 0
    if len(outputs) == 1 and not lengths:  # the usual case, kept quick
        output = outputs[0]
        for request in requests:
            end = start + len(request[0])
            answers.append([output[start:end]])
            start = end
        return answers
    for index, request in enumerate(requests):
        end = start + len(request[0])
        rows = [output[start:end] for output in outputs]
        if lengths:
            for which in cut:
                rows[which] = rows[which][:, : lengths[index]]
        answers.append(rows)
        start = end
    return answers


def _pad(requests: Sequence[Arrays], padding: PaddingRule, lengths: list[int]) -> Joined:
    """Every row as long as the longest, filled up at its end."""
    rows = [len(request[0]) for request in requests]
    longest = max(lengths)
    inputs = []
    for index, value in enumerate(padding.values):
        if value is None:
            inputs.append(np.concatenate([request[index] for request in requests]))
            continue
        first = requests[0][index]
        padded = np.full((sum(rows), longest, *first.shape[2:]), value, first.dtype)
        start = 0
        for request, count, length in zip(requests, rows, lengths, strict=True):
            padded[start : start + count, :length] = request[index]
            start += count
        inputs.append(padded)
    mask = np.arange(longest) < np.repeat(lengths, rows)[:, None]
    return Joined(inputs, lengths, mask)
