"""Decode a tokenized row into the parts of its text that the loss covers and those that it does not."""

import itertools
from dataclasses import dataclass
from typing import Any

from finetune_trainer.data.tokens import IGNORED, TokenizedRow


@dataclass(frozen=True)
class Part:
    """A part of a decoded sequence; ``learned``: the loss covers its tokens."""

    text: str
    learned: bool


def label_sequences(row: TokenizedRow) -> dict[str, tuple[list[int], list[int]]]:
    """Return the ids and labels of ``text``, or of each answer with its prompt, such as ``chosen``."""
    if "input_ids" in row:
        return {"text": (row["input_ids"], row["labels"])}
    prompt = row["prompt_ids"]
    return {
        name.removesuffix("_ids"): (prompt + ids, [IGNORED] * len(prompt) + ids)
        for name, ids in row.items()
        if name.endswith("_ids") and name != "prompt_ids"
    }


def decode_row(tokenizer: Any, row: TokenizedRow, limit: int | None = None) -> dict[str, list[Part]]:
    """Return the parts of each sequence.

    Args:
        tokenizer: The model's tokenizer.
        row: The row.
        limit: How many tokens of a sequence to decode; None for all.
    """
    sequences = label_sequences(row)
    return {name: _split(tokenizer, ids[:limit], labels[:limit]) for name, (ids, labels) in sequences.items()}


def _split(tokenizer: Any, ids: list[int], labels: list[int]) -> list[Part]:
    """Decode a sequence, and split its text where the learned tokens begin and end."""
    parts, text, at = [], "", 0
    for learned, group in itertools.groupby(labels, key=lambda label: label != IGNORED):
        at += len(list(group))
        decoded = tokenizer.decode(ids[:at], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        parts.append(Part(decoded[len(text) :], learned))
        text = decoded
    return parts
