"""Read from an engine's command line whether it serves LoRA adapters. Pure.

What the arguments do not tell is unknown.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_engines.base import Engine

_SHELLS = ("sh", "bash", "ash", "dash")


@dataclass(frozen=True)
class EngineArgs:
    """``lora``: LoRA is turned on; ``max_lora_rank``: the engine's maximum. None: unknown."""

    lora: bool | None
    max_lora_rank: int | None


def read_engine_args(container: dict[str, Any], engine: Engine) -> EngineArgs:
    """Read ``command`` and ``args`` of the engine's container.

    The image's entry point, a shell variable or a configuration file may add arguments that are not visible here. Then
    an argument that is missing counts as unknown.
    """
    words = _split_words([*(container.get("command") or []), *(container.get("args") or [])])
    names = _list_names(words)
    complete = (
        not set(engine.start_words).isdisjoint([*words, *names])
        and not any("$" in word for word in words)
        and set(engine.config_arguments).isdisjoint(names)
    )
    has_lora_argument = not set(engine.lora_arguments).isdisjoint(names)
    text = _read_value(words, engine.max_rank_argument)
    rank = int(text) if text is not None and text.isdigit() else None
    if rank is None and text is None and complete and has_lora_argument:
        rank = engine.default_max_rank
    return EngineArgs(lora=True if has_lora_argument else (False if complete else None), max_lora_rank=rank)


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
    """List the names of the arguments; an underscore in a name counts as a dash."""
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
