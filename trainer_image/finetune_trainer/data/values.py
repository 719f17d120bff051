"""Recognise, decode and describe the values of a row."""

import json
import math
import re
from typing import Any

Row = dict[str, Any]
Message = dict[str, Any]
MAX_DEPTH = 100
"""Maximum nesting of a value, because chat templates and others recurse into it in Python."""
QUOTED_CHARACTERS = 60
PYTHON_NOTATION = re.compile(r"[\[{(]\s*[\[{(]?\s*('|array\(|None\b|True\b|False\b)")
"""How the text of a Python list or dict begins, which pandas writes into a CSV cell."""


class RowError(str):
    """The problem of a row: a str of its own class, to distinguish it from the texts of rows."""

    __slots__ = ()


def first_error(*values: Any) -> RowError | None:
    """Return the first of the values that is a problem."""
    return next((value for value in values if isinstance(value, RowError)), None)


class UnusableJsonError(ValueError):
    """JSON that is complete, but that cannot be used; more text would change nothing."""


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; NaN is null.

    Raises:
        ValueError: The text is not JSON.
        UnusableJsonError: It is nested too deeply, or a key comes twice.
    """
    try:
        value = json.loads(text, parse_constant=null_for_nan, object_pairs_hook=build_object)
    except RecursionError:
        raise UnusableJsonError(TOO_DEEP) from None
    return check_depth(value)


def build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object with these keys and values.

    Raises:
        UnusableJsonError: A key comes twice; JSON parsers would silently keep one of its values.
    """
    built = dict(pairs)
    if len(built) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise UnusableJsonError(f"an object has the key {repeated!r} twice")
    return built


def null_for_nan(constant: str) -> float | None:
    """Return None for NaN, which pandas writes for null, and the number for ``Infinity``."""
    return None if constant == "NaN" else float(constant)


TOO_DEEP = f"lists and objects are nested more than {MAX_DEPTH} deep"


def check_depth(value: Any) -> Any:
    """Return the value if its nesting is not too deep.

    Raises:
        UnusableJsonError: It is nested too deeply.
    """
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return value
    raise UnusableJsonError(TOO_DEEP)


def parse_stored(value: Any, name: str) -> Any:
    """Parse a list or an object that is stored as JSON text, as in CSV files; return any other value unchanged.

    Args:
        value: The value of a column or of a key.
        name: Its name for messages, for example ``column 'messages'``.
    """
    text = value.strip() if isinstance(value, str) else ""
    if text[:1] not in ("[", "{"):
        return value
    if PYTHON_NOTATION.match(text):
        return RowError(
            f"{name} holds Python's notation, not JSON: {quote(text)}. Write the value with json.dumps(value) before "
            "the table is saved, or save the rows as jsonl"
        )
    try:
        return parse_json(text)
    except ValueError as error:
        return RowError(f"{name} is not JSON ({error}): {quote(text)}")


def is_null(value: Any) -> bool:
    """Return whether a value is null, or NaN, which pandas stores for null."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_blank(value: Any) -> bool:
    """Return whether a value is empty: null, an empty text, list or object."""
    return is_null(value) or (isinstance(value, str) and not value.strip()) or value in ([], {})


def drop_nulls(value: Any) -> Any:
    """Return a value without the keys that are null at any depth, which parquet adds."""
    if isinstance(value, dict):
        return {key: drop_nulls(inner) for key, inner in value.items() if not is_null(inner)}
    return [drop_nulls(inner) for inner in value] if isinstance(value, list) else value


def column_names(row: Row) -> str:
    """Return the names of the first columns, for a message."""
    return ", ".join(list(row)[:20]) or "none"


def describe_type(value: object) -> str:
    """Describe a value's type in words, for a message."""
    if is_null(value):
        return "null"
    if isinstance(value, list | str) and not value:
        return f"an empty {'list' if isinstance(value, list) else 'text'}"
    return {
        "str": "a text",
        "int": "a number",
        "float": "a number",
        "bool": "true or false",
        "list": "a list",
        "dict": "an object",
    }.get(type(value).__name__, type(value).__name__)


def quote(content: str | bytes) -> str:
    """Quote the beginning of a content for a message."""
    start = content[: 8 * QUOTED_CHARACTERS]
    return repr(_shorten((start.decode("utf-8", errors="replace") if isinstance(start, bytes) else start).strip()))


def quote_value(value: Any) -> str:
    """Return the beginning of a value as JSON for a message."""
    return _shorten(json.dumps(value, default=str, ensure_ascii=False))


def _shorten(text: str) -> str:
    return text if len(text) <= QUOTED_CHARACTERS else text[: QUOTED_CHARACTERS - 1] + "…"
