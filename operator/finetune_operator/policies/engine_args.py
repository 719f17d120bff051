"""Read from the arguments of a vLLM container whether it serves LoRA adapters. Pure.

What the arguments do not tell is unknown.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DEFAULT_MAX_LORA_RANK = 16
_SHELLS = ("sh", "bash", "ash", "dash")
_OPEN_ENDED = ("--config",)
"""Arguments that name a file with further arguments."""


@dataclass(frozen=True)
class EngineArgs:
    """``lora``: whether --enable-lora is given; ``max_lora_rank``: the engine's maximum. None: unknown."""

    lora: bool | None
    max_lora_rank: int | None


def read_engine_args(container: dict[str, Any]) -> EngineArgs:
    """Read ``command`` and ``args`` of a container.

    The image's entry point, a shell variable or a configuration file may add arguments that are not visible here. Then
    an argument that is missing counts as unknown.
    """
    words = _split_words([*(container.get("command") or []), *(container.get("args") or [])])
    complete = (
        ("--model" in _list_names(words) or "serve" in words)
        and not any("$" in word for word in words)
        and not set(_OPEN_ENDED) & set(_list_names(words))
    )
    given = "--enable-lora" in _list_names(words)
    text = _read_value(words, "--max-lora-rank")
    rank = int(text) if text is not None and text.isdigit() else None
    if rank is None and text is None and complete and given:
        rank = DEFAULT_MAX_LORA_RANK
    return EngineArgs(lora=True if given else (False if complete else None), max_lora_rank=rank)


def _split_words(arguments: Sequence[str]) -> list[str]:
    """Split the arguments into words, also those of a script that is given to a shell."""
    words: list[str] = []
    for argument in arguments:
        text = str(argument)
        in_shell = any(word.rpartition("/")[2] in _SHELLS for word in words)
        if in_shell and not text.startswith("-"):
            try:
                words += shlex.split(text, comments=True)
                continue
            except ValueError:
                words.append("$")
        words.append(text)
    return words


def _list_names(words: Sequence[str]) -> list[str]:
    """List the names of the arguments; vLLM reads an underscore as a dash."""
    return [_read_name(word) for word in words if word.startswith("--")]


def _read_name(word: str) -> str:
    return word.partition("=")[0].replace("_", "-")


def _read_value(words: Sequence[str], name: str) -> str | None:
    for position, word in enumerate(words):
        if word.startswith("--") and _read_name(word) == name:
            if "=" in word:
                return word.partition("=")[2]
            return words[position + 1] if position + 1 < len(words) else ""
    return None
