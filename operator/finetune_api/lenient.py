"""Read objects and messages that another version wrote.

After a rollback of the operator, or with a newer trainer, they contain fields and values that are unknown here.
"""

import copy
import math
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from finetune_api.validation import format_path

ModelT = TypeVar("ModelT", bound=BaseModel)


def read_spec(model: type[ModelT], content: dict[str, Any]) -> tuple[ModelT, list[str]]:
    """Read a spec without the fields that this version does not know.

    The API server refuses unknown fields, so these are of a newer CRD. All other values must be valid.

    Returns:
        The model, and the paths of the fields that were left out.

    Raises:
        ValidationError: More than unknown fields is wrong.
    """
    try:
        return model.model_validate(content), []
    except ValidationError as error:
        unknown = [item["loc"] for item in error.errors() if item["type"] == "extra_forbidden"]
        if not unknown:
            raise
        try:
            return model.model_validate(content, extra="ignore"), [format_path(path) for path in unknown]
        except ValidationError:
            raise error from None


def read_known(model: type[ModelT], content: Any) -> tuple[ModelT, list[str]]:
    """Read the values that this version understands and Kubernetes can store, and leave out all others.

    Returns:
        The model, and the paths of the values that could not be read.

    Raises:
        ValidationError: Nothing can be read.
    """
    known, removed = content, list[str]()
    if unstorable := list(find_unstorable(content)):
        known = copy.deepcopy(content)
        removed = [format_path(path) for path in reversed(unstorable) if _remove(known, path)]
    while True:
        try:
            return model.model_validate(known, extra="ignore"), removed
        except ValidationError as error:
            known = copy.deepcopy(known)
            paths = dict.fromkeys(_find_unreadable(item["type"], item["loc"]) for item in error.errors())
            outermost = [path for path in paths if not any(path[:end] in paths for end in range(len(path)))]
            # The last item of a list is removed first, so that the paths of the others stay right.
            left_out = [path for path in reversed(outermost) if _remove(known, path)]
            if not left_out:
                raise
            removed += [format_path(path) for path in left_out]


def find_unstorable(value: Any, path: tuple[int | str, ...] = ()) -> Iterator[tuple[int | str, ...]]:
    """Yield the paths of numbers that Kubernetes cannot store: NaN, infinities, and integers beyond 64 bits."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from find_unstorable(item, (*path, name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from find_unstorable(item, (*path, number))
    elif (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, int) and abs(value) >= 2**63):
        yield path


def _find_unreadable(kind: str, path: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return the path of the value to leave out.

    Where a required field is missing, this is the whole object.
    """
    return path[:-1] if kind == "missing" else path


def _remove(value: Any, path: tuple[int | str, ...]) -> bool:
    """Remove the value at a path; return whether it was there."""
    if not path:
        return False
    for step in path[:-1]:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return False
    try:
        del value[path[-1]]
    except (KeyError, IndexError, TypeError):
        return False
    return True
