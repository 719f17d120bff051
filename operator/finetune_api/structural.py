"""Check an object against a CRD's structural schema, and fill in its defaults, as the API server does.

The API server replaces null by the default first, or drops it; then it checks types and limits. CEL rules are not
here: the models check the same (``finetune_api.validation``).
"""

import math
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from finetune_api import remedies
from finetune_api.messages import Problem

Schema = dict[str, Any]
PRESERVED = "x-kubernetes-preserve-unknown-fields"
INT_OR_STRING = "x-kubernetes-int-or-string"
MAX_INTEGER = 2**53 - 1
"""Largest float that counts as an integer; an int may have up to 64 bits."""


def fill_in(value: Any, schema: Schema) -> Any:
    """Return the value with its defaults and without nulls, its fields in the order of the schema."""
    if isinstance(value, list) and "items" in schema:
        return [fill_in(item, schema["items"]) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return int(value)  # as in JSON
    if not isinstance(value, dict):
        return value
    properties: dict[str, Schema] = schema.get("properties", {})
    other_values: Schema = schema.get("additionalProperties", {})
    result = {}
    for name, part in properties.items():
        item = value.get(name)
        if item is None and "default" in part:
            item = part["default"]
        if item is not None:
            result[name] = fill_in(item, part)
        elif name in value and part.get(PRESERVED):
            result[name] = None
    for name, item in value.items():
        if name not in properties and (item is not None or schema.get(PRESERVED) or not other_values):
            result[name] = fill_in(item, other_values)
    return result


def find_unknown(value: Any, schema: Schema, path: str, root: Schema) -> Iterator[Problem]:
    """Yield the fields that the schema does not have.

    Args:
        value: The value.
        schema: Its schema.
        path: Its path, for example ``spec.method``.
        root: Schema of the whole object, to find where a misplaced field belongs.
    """
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from find_unknown(item, schema.get("items", {}), f"{path}[{index}]", root)
    if (
        not isinstance(value, dict)
        or schema.get(PRESERVED)
        or not schema.keys() & {"properties", "additionalProperties"}
    ):
        return
    properties: dict[str, Schema] = schema.get("properties", {})
    for name, item in value.items():
        part = properties.get(name, schema.get("additionalProperties"))
        if part is None:
            yield Problem(field=f"{path}.{name}", message=remedies.unknown_field(name, item, schema, path, root))
        else:
            yield from find_unknown(item, part, f"{path}.{name}", root)


def find_problems(value: Any, schema: Schema, path: str) -> Iterator[Problem]:
    """Yield what the API server refuses in a value, except unknown fields.

    Args:
        value: The value, filled in.
        schema: Its schema.
        path: Its path, for example ``spec.method``.
    """
    if problem := _find_wrong_type(value, schema, path):
        yield problem
    elif isinstance(value, dict):
        yield from _find_in_object(value, schema, path)
    elif isinstance(value, list):
        yield from _find_in_list(value, schema, path)
    else:
        yield from _find_in_scalar(value, schema, path)


def _find_wrong_type(value: Any, schema: Schema, path: str) -> Problem | None:
    if schema.get(INT_OR_STRING):
        is_valid = isinstance(value, str) or _is_integer(value)
        kind = "integer or string"
    else:
        kind = schema.get("type", "any")
        is_valid = kind == "any" or _has_type(value, kind)
    return None if is_valid else Problem(field=path, message=remedies.wrong_type(value, kind, schema, path))


def _has_type(value: Any, kind: str) -> bool:
    match kind:
        case "object":
            return isinstance(value, dict)
        case "array":
            return isinstance(value, list)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return _is_integer(value)
        case _:
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return (isinstance(value, int) and abs(value) < 2**63) or (abs(value) <= MAX_INTEGER and float(value).is_integer())


def _find_in_object(value: dict[str, Any], schema: Schema, path: str) -> Iterator[Problem]:
    properties: dict[str, Schema] = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield Problem(field=f"{path}.{name}", message=remedies.missing(properties[name], name, value))
    if len(value) > schema.get("maxProperties", len(value)):
        message = f"has {len(value)} entries: at most {schema['maxProperties']} are allowed"
        yield Problem(field=path, message=message)
    for name, item in value.items():
        if part := properties.get(name, schema.get("additionalProperties")):
            yield from find_problems(item, part, f"{path}.{name}")


def _find_in_list(value: list[Any], schema: Schema, path: str) -> Iterator[Problem]:
    if len(value) < schema.get("minItems", 0):
        yield Problem(field=path, message=f"has {len(value)} items: at least {schema['minItems']} are needed")
    if len(value) > schema.get("maxItems", len(value)):
        yield Problem(field=path, message=f"has {len(value)} items: at most {schema['maxItems']} are allowed")
    for index, item in enumerate(value):
        yield from find_problems(item, schema.get("items", {}), f"{path}[{index}]")
    yield from _find_repeated(value, schema, path)


def _find_repeated(value: list[Any], schema: Schema, path: str) -> Iterator[Problem]:
    """Yield the items of a set, or of a list-map, that have the key of an earlier one."""
    keys = schema.get("x-kubernetes-list-map-keys")
    if schema.get("x-kubernetes-list-type") not in ("map", "set"):
        return
    seen: dict[str, int] = {}
    for index, item in enumerate(value):
        if keys and not isinstance(item, dict):
            continue
        key = repr([item.get(name) for name in keys]) if keys else repr(item)
        if key in seen:
            key_words = ", ".join(f"{name} {item.get(name)}" for name in keys) if keys else repr(item)
            message = f"has the {key_words} of item {seen[key]}: rename or remove one of them"
            yield Problem(field=f"{path}[{index}]", message=message)
        seen.setdefault(key, index)


def _find_in_scalar(value: Any, schema: Schema, path: str) -> Iterator[Problem]:
    if "enum" in schema and value not in schema["enum"]:
        yield Problem(field=path, message=remedies.wrong_choice(value, schema["enum"]))
    if isinstance(value, str):
        if len(value) < schema.get("minLength", 0):
            yield Problem(field=path, message=remedies.too_short(value, schema))
        elif len(value) > schema.get("maxLength", len(value)):
            message = f"has {len(value)} characters: at most {schema['maxLength']} are allowed"
            yield Problem(field=path, message=message)
        elif "pattern" in schema and not matches(value, schema["pattern"]):
            yield Problem(field=path, message=remedies.wrong_form(value, schema))
    elif limit := _find_broken_limit(value, schema):
        yield Problem(field=path, message=f"found {remedies.show(value)}: {limit}")


def _find_broken_limit(value: float, schema: Schema) -> str | None:
    if (low := schema.get("minimum")) is not None:
        exclusive = schema.get("exclusiveMinimum", False)
        if value < low or (exclusive and value == low):
            return f"must be {'greater than' if exclusive else 'at least'} {low:g}"
    if (high := schema.get("maximum")) is not None:
        exclusive = schema.get("exclusiveMaximum", False)
        if value > high or (exclusive and value == high):
            return f"must be {'less than' if exclusive else 'at most'} {high:.15g}"
    return None


def matches(text: str, pattern: str) -> bool:
    """Return whether a text matches a pattern as in Go: ``$`` is the very end, and digits are ASCII only."""
    return _compile(pattern).search(text) is not None


@cache
def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\$(?=$|\)|\|)", r"\\Z", pattern), re.ASCII)
