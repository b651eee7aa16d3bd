"""Task type text-embedding: text in, one vector out, by the checkpoint's own tokenizer.json.

Texts of different length are different parts, even those of one request: only the engine pads them together, with an attention
mask, once it has proven that a text's vectors stay the same, and only where that pays. Pooling follows sentence-transformers'
Pooling and Normalize modules.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from torchmodel_runtime.config import CHECKPOINT_INVALID, WARM_UP_FAILED, Signature, TensorSpec, TextEmbedding
from torchmodel_runtime.errors import StartError, invalid
from torchmodel_runtime.tasks import FREE, Allowance, ModuleCall, PaddingRule, Work
from torchmodel_runtime.tensors import Arrays

HEAVY_CHARACTERS = 4096
"""Tokenising this much takes about a millisecond; more leaves the event loop. A guess from one measurement."""

CHARACTER_BYTES, TEXT_BYTES = 512, 1024
"""Of memory that tokenizing takes at most, for a character and for a text: a character may be a token of its own. Measured."""

PORTION_CHARACTERS = 1 << 17
"""Texts are tokenized so many characters at a time, or one by one where they are longer."""

SYNTHETIC_TOKENS = 16

SHORT_TOKENS, LONG_TOKENS = 3, 64
"""Between them lie the lengths that the proof of padding compares: one word with its marks, and a long sentence."""


class TextTask:
    """Texts in, vectors out."""

    media: tuple[str, ...] = ("text/plain",)
    signature: Signature

    def __init__(self, options: TextEmbedding, folder: Path) -> None:
        self._options = options
        self._tokenizer, self._pad_id = _load_tokenizer(folder, options.max_length_tokens)
        self.signature = _make_signature(-1)
        self.call = ModuleCall(
            outputs=(TensorSpec(name="last_hidden_state", datatype="FP32", shape=[-1, -1, -1]),),
            keywords=("input_ids", "attention_mask", "token_type_ids"),
            more_outputs=True,
            padding=PaddingRule((self._pad_id, 0, 0)),
        )
        self.lengths = (min(SHORT_TOKENS, options.max_length_tokens), min(LONG_TOKENS, options.max_length_tokens))

    def is_heavy(self, inputs: Arrays) -> bool:
        """True for long texts."""
        return sum(len(text) for text in inputs[0].tolist()) > HEAVY_CHARACTERS

    def prepare(self, inputs: Arrays, allowance: Allowance = FREE) -> Work:
        """One part for each length, the shortest first: ids, mask and types, int64 (rows, tokens)."""
        texts = [_read_text(text, index) for index, text in enumerate(inputs[0].tolist())]
        tokens: list[np.ndarray] = []
        for start, end in _portions(texts):
            tokens += self._tokenize(texts[start:end], start, allowance)
        by_length: dict[int, list[int]] = {}
        for index, each in enumerate(tokens):
            by_length.setdefault(each.shape[1], []).append(index)
        groups = [by_length[length] for length in sorted(by_length)]
        parts: list[Arrays] = []
        for group in groups:
            ids, types = np.stack([tokens[index] for index in group], axis=1)
            parts.append([ids, np.ones_like(ids), types])
        return Work(parts, notes=[index for group in groups for index in group])

    def _tokenize(self, texts: list[str], first: int, allowance: Allowance) -> list[np.ndarray]:
        """Of each text ids and types, int64 (2, tokens); first: the index of the first of them in the request."""
        borrowed = sum([TEXT_BYTES + CHARACTER_BYTES * len(text) for text in texts])
        allowance.borrow(borrowed)
        encodings = self._tokenizer.encode_batch_fast(texts)
        tokens = [np.array([encoding.ids, encoding.type_ids], np.int64) for encoding in encodings]
        for index, each in enumerate(tokens):
            if not each.size:
                raise invalid(f"input 'text'[{first + index}]: holds no tokens")
        size_bytes = sum([each.nbytes for each in tokens])
        allowance.keep(size_bytes // 2 * 3)  # with the mask
        allowance.give_back(borrowed)
        return tokens

    def finish(self, work: Work, results: list[Arrays]) -> Arrays:
        """One vector a text, float32 (rows, d), in the order in which the texts came."""
        vectors = np.concatenate([pool(outputs[0], self._options) for outputs in results])
        places = np.argsort(work.notes)
        return [vectors[places]]

    def rows(self, outputs: Arrays) -> list[Any]:
        """The vector of each text."""
        rows: list[Any] = outputs[0].tolist()
        return rows

    def reply(self, outputs: Arrays, single: bool) -> Any:
        """The vector, or the list of vectors."""
        rows = self.rows(outputs)
        return rows[0] if single else rows

    def learn(self, outputs: Arrays) -> None:
        """The vectors' length; the module must give one vector a token."""
        if outputs[0].ndim != 3:
            raise StartError(
                WARM_UP_FAILED,
                f"task.textEmbedding: the module returned shape {list(outputs[0].shape)}, "
                "must be (rows, tokens, features): one vector a token",
                "Use the encoder's class as architecture.entrypoint (for BERT: transformers:BertModel), not one with a head.",
            )
        self.signature = _make_signature(outputs[0].shape[2])

    def synthetic(self, rows: int, generator: np.random.Generator, length: int = 0) -> Arrays:
        """Random tokens; one row alone has the greatest length, so a model that cannot take it fails before it is ready."""
        longest = self._options.max_length_tokens
        length = length or (longest if rows == 1 else min(SYNTHETIC_TOKENS, longest))
        ids = generator.integers(0, self._tokenizer.get_vocab_size(), (rows, length), dtype=np.int64)
        return [ids, np.ones_like(ids), np.zeros_like(ids)]


def pool(hidden: np.ndarray, options: TextEmbedding) -> np.ndarray:
    """Token vectors (rows, tokens, d) as text vectors (rows, d), float32; all tokens are real ones."""
    hidden = hidden.astype(np.float32, copy=False)
    vectors = hidden[:, 0] if options.pooling == "cls" else hidden.mean(axis=1)
    if options.normalize:
        # 1e-12 as in torch.nn.functional.normalize
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(vectors, dtype=np.float32)


def _make_signature(features: int) -> Signature:
    return Signature(
        inputs=[TensorSpec(name="text", datatype="BYTES", shape=[-1])],
        outputs=[TensorSpec(name="embedding", datatype="FP32", shape=[-1, features])],
    )


def _portions(texts: list[str]) -> Iterator[tuple[int, int]]:
    """Where runs of texts of about PORTION_CHARACTERS start and end."""
    start = characters = 0
    for index, text in enumerate(texts):
        if index > start and characters + len(text) > PORTION_CHARACTERS:
            yield start, index
            start, characters = index, 0
        characters += len(text)
    yield start, len(texts)


def _read_text(text: str | bytes, index: int) -> str:
    if isinstance(text, str):
        return text
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise invalid(f"input 'text'[{index}]: must be UTF-8: {error}") from None


def _load_tokenizer(folder: Path, max_length_tokens: int) -> tuple[Tokenizer, int]:
    """The tokenizer with our own cut and no padding, and the id that pads."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise StartError(
            CHECKPOINT_INVALID,
            f"task.type text-embedding needs tokenizer.json beside the weights; {folder} has none",
            "Point checkpoint.uri at the model's whole folder (config.json, tokenizer.json, model.safetensors); "
            "transformers writes tokenizer.json by AutoTokenizer.from_pretrained(...).save_pretrained(folder).",
        )
    try:
        text = path.read_text()
        tokenizer = Tokenizer.from_str(text)
        padding = json.loads(text).get("padding") or {}
    except Exception as error:  # tokenizers raises bare Exception for whatever is wrong with the file
        raise StartError(
            CHECKPOINT_INVALID,
            f"tokenizer.json cannot be read: {error}",
            "Write it again by AutoTokenizer.from_pretrained(...).save_pretrained(folder).",
        ) from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=max_length_tokens)
    return tokenizer, int(padding.get("pad_id", 0))
