"""Read from an engine's command line whether it can serve LoRA adapters. Pure; what cannot be told stays None."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_engines.base import Engine

_SHELLS = ("sh", "bash", "ash", "dash")


@dataclass(frozen=True)
class EngineArgs:
    """What the command line tells. ``lora``: LoRA is on; ``max_lora_rank``: the highest rank. None: it does not tell."""

    lora: bool | None
    max_lora_rank: int | None


def read_engine_args(container: dict[str, Any], engine: Engine) -> EngineArgs:
    """Read ``command`` and ``args`` of the engine's container.

    An image's own entry point, a shell variable or a configuration file may add arguments that are not seen here: then an argument that is
    missing may be there all the same.
    """
    words = _words([*(container.get("command") or []), *(container.get("args") or [])])
    names = _names(words)
    complete = (
        not set(engine.start_words).isdisjoint([*words, *names])
        and not any("$" in word for word in words)
        and set(engine.config_arguments).isdisjoint(names)
    )
    given = engine.lora_argument in names
    text = _value(words, engine.max_rank_argument)
    rank = int(text) if text is not None and text.isdigit() else None
    if rank is None and text is None and complete and given:
        rank = engine.default_max_rank
    return EngineArgs(lora=True if given else (False if complete else None), max_lora_rank=rank)


def _words(arguments: Sequence[str]) -> list[str]:
    """The arguments; a script that is given to a shell is taken apart into its words."""
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


def _names(words: Sequence[str]) -> list[str]:
    """Return the names of the arguments; an underscore in a name is a dash, as Python's argument parsers take it."""
    return [_name(word) for word in words if word.startswith("--")]


def _name(word: str) -> str:
    return word.partition("=")[0].replace("_", "-")


def _value(words: Sequence[str], name: str) -> str | None:
    for position, word in enumerate(words):
        if word.startswith("--") and _name(word) == name:
            if "=" in word:
                return word.partition("=")[2]
            return words[position + 1] if position + 1 < len(words) else ""
    return None
