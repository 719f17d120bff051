"""Read what PEFT knows of architectures and of its own options from a generated table, without torch."""

import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def _table() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(files("finetune_api").joinpath("peft.json").read_text(encoding="utf-8"))
    return content


def version() -> str:
    """The version of PEFT that the table was made from."""
    return str(_table()["version"])


def default_targets(peft_type: str, model_type: str) -> list[str] | str | None:
    """Return the modules that PEFT adapts in an architecture when the user names none.

    Args:
        peft_type: Name in ``peft.PeftType``, for example LORA.
        model_type: ``model_type`` of the model's config.json.

    Returns:
        Module name suffixes or a regular expression; None if PEFT has no default.
    """
    found: list[str] | str | None = _table()["targetModules"][peft_type.lower()].get(model_type)
    return found


def default_feedforward(model_type: str) -> list[str] | None:
    """The modules whose input IA³ scales in such a model when none are named. None: PEFT has no default."""
    found: list[str] | None = _table()["feedforwardModules"].get(model_type)
    return found


def options(peft_type: str) -> list[str] | None:
    """The arguments of the configuration class of a PEFT type such as LORA. None: there is no such type."""
    found: list[str] | None = _table()["options"].get(peft_type)
    return found


def peft_types() -> list[str]:
    """The methods that PEFT has, by its own names."""
    return sorted(_table()["options"])
