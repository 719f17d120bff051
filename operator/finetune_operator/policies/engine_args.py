"""What the arguments of a vLLM container tell about its LoRA support. Pure; what cannot be told stays open instead of being guessed."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DEFAULT_MAX_LORA_RANK = 16
_SHELLS = ("sh", "bash", "ash", "dash")
_OPEN_ENDED = ("--config",)
"""Arguments behind which further arguments may hide."""


@dataclass(frozen=True)
class EngineArgs:
    """``lora``: whether --enable-lora is given; ``max_lora_rank``: the engine's maximum. None: it cannot be told from here."""

    lora: bool | None
    max_lora_rank: int | None


def read_engine_args(container: dict[str, Any]) -> EngineArgs:
    """Read ``command`` and ``args`` of a container.

    An image's own entry point, a shell variable or a configuration file may add arguments that are not seen here: then an argument that is
    missing may be there all the same.
    """
    words = _words([*(container.get("command") or []), *(container.get("args") or [])])
    complete = (
        ("--model" in _names(words) or "serve" in words)
        and not any("$" in word for word in words)
        and not set(_OPEN_ENDED) & set(_names(words))
    )
    given = "--enable-lora" in _names(words)
    text = _value(words, "--max-lora-rank")
    rank = int(text) if text is not None and text.isdigit() else None
    if rank is None and text is None and complete and given:
        rank = DEFAULT_MAX_LORA_RANK
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
    """Names of the arguments. vLLM takes an underscore for a dash."""
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
