"""Turn pydantic's errors into problems with Kubernetes field paths."""

import re

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from finetune_api.messages import Problem
from finetune_api.reasons import Reason

FIELD_OF_MESSAGE = re.compile(r"([a-z][A-Za-z0-9]*): ")
"""Start of a message that names its field, because the validator checks several fields together."""


def problems(error: ValidationError, root: str = "") -> list[Problem]:
    """Return one problem per error, its field as a path like ``spec.method.lora.rank``.

    Args:
        error: The errors.
        root: Path of the model, for example ``spec``.
    """
    result: dict[tuple[str, str], Problem] = {}
    for item in error.errors(include_url=False):
        text, location = item["msg"].removeprefix("Value error, "), item["loc"]
        value = item.get("input")
        branch = next((number for number, part in enumerate(location) if _is_union_branch(part)), None)
        if item["type"] == "extra_forbidden":
            text = "unknown field: remove it, or see `kubectl explain` for the fields that exist"
        elif branch is not None and item["type"] in ("string_type", "list_type"):
            location, text = location[:branch], "must be a string or a list of strings"
        elif isinstance(value, str | int | float | bool) and str(value) not in text:
            text = f"{text} (found {value!r})"
        field = FIELD_OF_MESSAGE.match(text)
        path = ".".join(filter(None, [root, format_path(location), field and field[1]]))
        message = text[field.end() if field else 0 :]
        result[path, message] = Problem(reason=Reason.SPEC_INVALID, field=path, message=message)
    return list(result.values())


def format_path(location: tuple[int | str, ...]) -> str:
    """Format pydantic's location of an error as a field path like ``spec.dataset.columns[0]``."""
    parts = [part for part in location if not _is_union_branch(part)]
    return "".join(f"[{part}]" if isinstance(part, int) else f".{to_camel(part)}" for part in parts).lstrip(".")


def _is_union_branch(part: int | str) -> bool:
    """Return whether a part of a location is a type that pydantic tried of a union, as for targetModules."""
    return part in ("str", "list[str]")
