"""Read from an engine's command line which LoRA adapters it serves. Pure.

A value that the arguments do not show is unknown (None).
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any

from finetune_api.version_paths import VARIABLE_PREFIX
from finetune_engines.base import Engine

_PATH_VARIABLE = re.compile(rf"\$[({{]?({VARIABLE_PREFIX}\w+)[)}}]?")
"""Reference to a version's directory in a variable that the operator sets; it cannot hide further arguments."""
_SHELLS = ("sh", "bash", "ash", "dash")


@dataclass(frozen=True)
class EngineArgs:
    """The LoRA settings of a command line. None: unknown."""

    lora: bool | None
    """Whether LoRA is turned on."""
    max_lora_rank: int | None
    """Highest rank of an adapter."""
    slots: int | None = None
    """How many adapters it keeps in memory."""
    modules: tuple[str, ...] | None = None
    """Modules to which adapters apply; also None if to all."""
    base: str | None = None
    """Name or path of the base model."""
    revision: str | None = None
    """Revision of the base model, if an argument names one."""
    chat_template: str | None = None
    """Chat template that replaces the base's own."""
    paths: frozenset[str] = frozenset()
    """Variables with the directory of a version that it names."""


def read_engine_args(container: dict[str, Any], engine: Engine) -> EngineArgs:
    """Read ``command`` and ``args`` of the engine's container.

    The image's entry point, a shell variable or a configuration file may add arguments that are not visible here. Then
    an argument that is missing counts as unknown.
    """
    words = _split_words([_PATH_VARIABLE.sub("", argument) for argument in _list_arguments(container)])
    names = _list_names(words)
    is_complete = (
        not set(engine.start_words).isdisjoint([*words, *names])
        and not any("$" in word for word in words)
        and set(engine.config_arguments).isdisjoint(names)
    )
    has_lora_argument = not set(engine.lora_arguments).isdisjoint(names)
    uses_defaults = is_complete and has_lora_argument
    modules = _read_values(words, engine.modules_argument)
    return EngineArgs(
        lora=True if has_lora_argument else (False if is_complete else None),
        max_lora_rank=_read_number(
            words, (engine.max_rank_argument,), engine.default_max_rank if uses_defaults else None
        ),
        slots=_read_number(words, engine.slot_arguments, engine.default_slots if uses_defaults else None),
        modules=modules if modules and "all" not in modules and not any("$" in name for name in modules) else None,
        base=_read_base(words, engine),
        revision=_read_value(words, "--revision"),
        chat_template=_read_value(words, "--chat-template"),
        paths=list_path_variables(container),
    )


def list_path_variables(container: dict[str, Any]) -> frozenset[str]:
    """List the variables with the directory of a version that the engine's command line names."""
    return frozenset(name for argument in _list_arguments(container) for name in _PATH_VARIABLE.findall(argument))


def _list_arguments(container: dict[str, Any]) -> list[str]:
    return [str(argument) for argument in [*(container.get("command") or []), *(container.get("args") or [])]]


def _read_number(words: Sequence[str], names: Sequence[str], default: int | None) -> int | None:
    """Read the first argument that is set. Returns the default if none is set, None for a value that is no number."""
    for name in names:
        text = _read_value(words, name)
        if text is not None:
            return int(text) if text.isdigit() else None
    return default


def _read_base(words: Sequence[str], engine: Engine) -> str | None:
    """Read the base model: the value of its argument, or the word after ``serve``."""
    named = [value for name in engine.base_arguments if (value := _read_value(words, name))]
    positional = [after for word, after in pairwise(words) if word == "serve" and not after.startswith("-")]
    return next(iter([*named, *positional]), None)


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
                words.append("$")  # so that the arguments count as not all visible
        words.append(text)
    return words


def _list_names(words: Sequence[str]) -> list[str]:
    """List the names of the arguments; an underscore in a name counts as a dash."""
    return [_read_name(word) for word in words if word.startswith("--")]


def _read_name(word: str) -> str:
    return word.partition("=")[0].replace("_", "-")


def _read_values(words: Sequence[str], name: str) -> tuple[str, ...]:
    """Read the values of an argument that takes several: up to the next argument, or after an equals sign."""
    for position, word in enumerate(words):
        if word.startswith("--") and _read_name(word) == name:
            if "=" in word:
                return tuple(word.partition("=")[2].replace(",", " ").split())
            return tuple(takewhile(lambda value: not value.startswith("--"), words[position + 1 :]))
    return ()


def _read_value(words: Sequence[str], name: str) -> str | None:
    for position, word in enumerate(words):
        if word.startswith("--") and _read_name(word) == name:
            if "=" in word:
                return word.partition("=")[2]
            return words[position + 1] if position + 1 < len(words) else ""
    return None
