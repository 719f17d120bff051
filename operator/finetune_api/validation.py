"""Pydantic's errors as problems with Kubernetes field paths."""

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from finetune_api.messages import Problem
from finetune_api.reasons import Reason


def problems(error: ValidationError) -> list[Problem]:
    """One problem per error, its field as a path like ``spec.method.lora.rank``."""
    found = []
    for item in error.errors(include_url=False):
        text = item["msg"].removeprefix("Value error, ")
        given = item.get("input")
        if item["type"] == "extra_forbidden":
            text = "unknown field: remove it, or see `kubectl explain` for the fields that exist"
        elif isinstance(given, str | int | float | bool):
            text = f"{text} (found {given!r})"
        found.append(Problem(reason=Reason.SPEC_INVALID, field=format_path(item["loc"]), message=text))
    return found


def format_path(location: tuple[int | str, ...]) -> str:
    """Format pydantic's location of an error as a field path like ``spec.dataset.columns[0]``."""
    parts = [part for part in location if not _is_union_branch(part)]
    return "".join(f"[{part}]" if isinstance(part, int) else f".{to_camel(part)}" for part in parts).lstrip(".")


def _is_union_branch(part: int | str) -> bool:
    """Pydantic puts the tried type of a union into the path: ``str`` and ``list[str]`` for targetModules."""
    return part in ("str", "list[str]")
