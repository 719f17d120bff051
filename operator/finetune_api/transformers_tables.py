"""Look up in a generated table for which models transformers has code, without torch."""

import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def _table() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        files("finetune_api").joinpath("transformers.json").read_text(encoding="utf-8")
    )
    return content


def version() -> str:
    """Return the version of transformers from which the table was generated."""
    return str(_table()["version"])


def is_known(model_type: str) -> bool:
    """Return whether transformers itself has a causal language model of this type."""
    return model_type in _table()["causalModels"]
