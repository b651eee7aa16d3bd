"""Answers of all dialects → lines that a person can read. Pure; called by `prediction`."""

from __future__ import annotations

from typing import Any

SHOWN_VALUES = 6
"""Of a long row, this many values are shown; enough to compare two answers by eye."""

BAR_CHARACTERS = 30


def format_answer(answer: Any) -> str:
    """The answer to one request, whichever dialect it is in."""
    if isinstance(answer, dict) and "outputs" in answer:
        return "\n".join(_format_tensor(tensor) for tensor in answer["outputs"])
    if isinstance(answer, dict) and "predictions" in answer:
        return _format_rows(answer["predictions"])
    if isinstance(answer, list) and answer and isinstance(answer[0], dict | list):
        return _format_rows(answer)
    return format_row(answer)


def _format_rows(rows: list[Any]) -> str:
    if len(rows) == 1:
        return format_row(rows[0])
    texts = [format_row(row) for row in rows]
    separator = "\n" if any("\n" in text for text in texts) else " "
    return "\n".join(f"row {index}:{separator}{text}" for index, text in enumerate(texts))


def format_row(row: Any) -> str:
    """What the model says to one input: labels, segments, a vector, or any JSON value."""
    if isinstance(row, dict) and "segments" in row:
        return _format_segments(row)
    if isinstance(row, dict) and set(row) == {"labels", "scores"}:
        return _format_labels(list(zip(row["labels"], row["scores"], strict=True)))
    if isinstance(row, dict) and row and all(isinstance(score, int | float) for score in row.values()):
        return _format_labels(list(row.items()))
    if isinstance(row, list) and all(isinstance(value, int | float | None) for value in row):
        return format_vector(row)
    if isinstance(row, dict):
        return "\n".join(f"{name}: {format_row(value)}" for name, value in row.items())
    return _format_number(row) if isinstance(row, int | float | None) else str(row)


def _format_labels(pairs: list[tuple[str, float]]) -> str:
    """A table with bars, the best label first."""
    width = max(len(str(label)) for label, _ in pairs)
    top = max(max(score for _, score in pairs), 1e-9)
    lines = []
    for label, score in pairs:
        bar = "█" * round(BAR_CHARACTERS * max(score, 0) / max(top, 1))
        lines.append(f"{label:<{width}}  {score:8.4f}  {bar}".rstrip())
    return "\n".join(lines)


def _format_segments(row: dict[str, Any]) -> str:
    segments = row["segments"]
    duration = f" in {row['duration_seconds']:.2f} s" if "duration_seconds" in row else ""
    total = sum(segment["end"] - segment["start"] for segment in segments)
    count = "1 segment" if len(segments) == 1 else f"{len(segments)} segments"
    lines = [f"{count} of speech, {total:.2f} s{duration}"]
    lines += [f"  {segment['start']:8.3f} s  to  {segment['end']:8.3f} s" for segment in segments]
    return "\n".join(lines)


def format_vector(values: list[Any]) -> str:
    """The first values and how many there are."""
    shown = ", ".join(_format_number(value) for value in values[:SHOWN_VALUES])
    return f"[{shown}]" if len(values) <= SHOWN_VALUES else f"[{shown}, …]  {len(values)} values"


def _format_number(value: Any) -> str:
    if value is None:  # what JSON has for NaN and infinity
        return "null"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _format_tensor(tensor: dict[str, Any]) -> str:
    """`name  FP32 [2, 1]`, then a line for each row of the first dimension."""
    data, shape = tensor["data"], tensor["shape"]
    head = f"{tensor['name']}  {tensor['datatype']} {shape}"
    rows = max(shape[0], 1) if shape else 1
    width = max(len(data) // rows, 1)
    lines = [f"  {format_vector(data[start : start + width])}" for start in range(0, len(data), width)]
    if len(lines) > SHOWN_VALUES:
        lines = [*lines[:SHOWN_VALUES], f"  …  {rows} rows"]
    return "\n".join([head, *lines])
