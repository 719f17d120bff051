"""Find the tokens that start a sequence and those that end a generation."""

from typing import Any


def find_start(tokenizer: Any) -> list[int]:
    """Return the tokens that the tokenizer puts before each text, such as ``<s>``."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    with_special = tokenizer("a")["input_ids"]
    sizes = range(len(with_special) - len(bare) + 1)
    return next((list(with_special[:size]) for size in sizes if with_special[size : size + len(bare)] == bare), [])


def add_start(start: list[int], ids: list[int]) -> list[int]:
    """Put the tokens that start a sequence before the others, unless they are there already."""
    return ids if start and ids[: len(start)] == start else [*start, *ids]


def find_ends(tokenizer: Any, generation: frozenset[int], ending: str) -> frozenset[int]:
    """Return the tokens that end a generation.

    Args:
        tokenizer: The model's tokenizer. Its end-of-text token ends a generation.
        generation: End tokens of the model's generation_config.
        ending: What the chat template writes after a turn of the assistant. Its first special token also ends one.
    """
    added = set(tokenizer.get_added_vocab().values())
    ids = tokenizer(ending, add_special_tokens=False)["input_ids"] if ending else []
    marks = [token for token in ids if token in added][:1]
    end = tokenizer.eos_token_id
    return generation | frozenset(marks) | (frozenset() if end is None else {end})
