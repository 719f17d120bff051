"""Look up PEFT's default modules and options in a generated table, without torch."""

import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def _table() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(files("finetune_api").joinpath("peft.json").read_text(encoding="utf-8"))
    return content


def version() -> str:
    """Return the version of PEFT from which the table was generated."""
    return str(_table()["version"])


def default_targets(peft_type: str, model_type: str) -> list[str] | str | None:
    """Return the modules that PEFT adapts in an architecture when the user names none.

    Args:
        peft_type: Name in ``peft.PeftType``, for example LORA.
        model_type: ``model_type`` of the model's config.json.

    Returns:
        Module name suffixes or a regular expression; None if PEFT has no default.
    """
    modules: list[str] | str | None = _table()["targetModules"][peft_type.lower()].get(model_type)
    return modules


def default_feedforward(model_type: str) -> list[str] | None:
    """Return the modules whose input IA³ scales by default in a model of this type; None if PEFT has no default."""
    modules: list[str] | None = _table()["feedforwardModules"].get(model_type)
    return modules


def options(peft_type: str) -> list[str] | None:
    """Return the arguments of a PEFT type's configuration class, for example of LORA; None for an unknown type."""
    arguments: list[str] | None = _table()["options"].get(peft_type)
    return arguments


def peft_types() -> list[str]:
    """Return PEFT's names of its methods."""
    return sorted(_table()["options"])


def converted_experts(model_type: str) -> dict[str, str]:
    """Map the layer names of experts and routers to the parameters that PEFT adapts in their place.

    Source: peft/utils/transformers_weight_conversion.py, ``_convert_peft_config_moe``.
    """
    names: dict[str, str] = _table()["experts"].get(model_type, {})
    return names
