"""Explain what is wrong with a field of a YAML file, and what to write there instead."""

import difflib
import math
import re
from collections.abc import Iterator
from typing import Any

from finetune_api.synonyms import SYNONYMS

Schema = dict[str, Any]
KINDS = {
    "object": "a mapping of fields",
    "array": "a list",
    "string": "a string",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "integer or string": "a whole number or a string",
}
PLACEHOLDER = re.compile(r"\{\{.*?\}\}|\$\{?[A-Za-z_]\w*\}?|<[a-z][\w -]*>")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
S3_ADDRESS = re.compile(r"s3://([^/]+)/?(.*)")
HUB_PAGE = re.compile(r"https?://(?:www\.)?huggingface\.co/(datasets/)?([\w.-]+/[\w.-]+)")
S3_PAGE = re.compile(r"https?://([\w.-]+?)\.s3[\w.-]*\.amazonaws\.com/(.+)")
FLOAT = re.compile(r"[-+]?\d*\.?\d+([eE][-+]?\d+)?")
MANY = 8
"""Most names that a message lists."""


def show(value: Any) -> str:
    """Describe a value in a few words."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return f"a mapping with {', '.join(list(value)[:3])}" if value else "an empty mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return repr(value if len(value) <= 80 else f"{value[:79]}…")
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def wrong_type(value: Any, kind: str, schema: Schema, path: str) -> str:
    """Return the message for a value of the wrong type. ``kind`` is a key of ``KINDS``."""
    name = path.rpartition(".")[2]
    remedy = _convert(value, kind, schema, name)
    if "[" in name:  # an item of a list has no name: - {name: …}
        remedy = remedy.replace(f"write {name}: ", "write - ")
    return f"must be {KINDS[kind]}, found {_show_with_type(value)}{f': {remedy}' if remedy else ''}"


def _show_with_type(value: Any) -> str:
    if isinstance(value, str):
        return f"the string {show(value)}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"the number {show(value)}"
    return show(value)


def _convert(value: Any, kind: str, schema: Schema, name: str) -> str:
    """Return how to write a value in the right type; empty if that cannot be known."""
    if isinstance(value, str) and (suggestion := _placeholder(value)):
        return suggestion
    match kind:
        case "integer" | "number":
            return _as_number(value, kind)
        case "boolean":
            return _as_boolean(value)
        case "string" if "enum" in schema:
            return f"write {_join(schema['enum'], 'or')}"
        case "string":
            return f'put it into quotes: "{show(value)}"' if isinstance(value, bool | int | float) else ""
        case "integer or string":
            return f'put it into quotes: "{show(value)}"' if isinstance(value, float) else ""
        case "array":
            return _as_list(value, schema, name)
        case _:
            return _as_object(value, schema, name)


def _as_number(value: Any, kind: str) -> str:
    if isinstance(value, float):
        return f"write {int(value)} or {int(value) + 1}"
    if not isinstance(value, str):
        return ""
    text = re.sub(r"^([-+]?\d+),(\d+)$", r"\1.\2", value.strip()) if kind == "number" else value.strip()
    text = text.replace(",", "").replace("_", "")
    if re.fullmatch(r"[-+]?\d+", text) or (kind == "number" and FLOAT.fullmatch(text) and math.isfinite(float(text))):
        return f"write {text} without quotes"
    if kind == "number" and (match := re.fullmatch(r"([\d.]+)\s*%", text)):
        return f"write {float(match[1]) / 100:g}"
    if match := re.fullmatch(r"([\d.]+)\s*[kK]", text):
        return f"write {float(match[1]) * 1000:g}"
    return "remove the field for its default" if text.lower() in ("auto", "default", "none", "") else ""


def _as_boolean(value: Any) -> str:
    text = str(value).strip().lower()
    if text in ("true", "yes", "on", "1", "always"):
        return "write true without quotes"
    if text in ("false", "no", "off", "0", "none", "never"):
        return "write false without quotes"
    return ""


def _as_list(value: Any, schema: Schema, name: str) -> str:
    items = schema.get("items", {})
    if isinstance(value, str) and items.get("type") == "string":
        return f"write {name}: [{', '.join(part.strip() for part in value.split(','))}]"
    properties = items.get("properties", {})
    if isinstance(value, str) and "name" in properties:
        return f"write {name}: [{{name: {value}}}]"
    if isinstance(value, dict) and {"name", "value"} <= properties.keys() and value and not value.keys() & properties:
        key, text = next(iter(value.items()))
        return f'begin each item with -, for example - {{name: {key}, value: "{text}"}}'
    return "begin each item with -" if isinstance(value, dict) else ""


def _as_object(value: Any, schema: Schema, name: str) -> str:
    properties: Schema = schema.get("properties", {})
    if isinstance(value, list):
        first = value[0] if value else None
        if len(value) == 1 and isinstance(first, str) and properties.get(first, {}).get("type") == "object":
            return f"write {name}: {{{first}: {{}}}}"
        return "remove the - before each field" if all(isinstance(item, dict) for item in value) and value else ""
    if not isinstance(value, str):
        if value is True and properties:
            return f"write {name}: {{}} for its defaults"
        return f"remove {name}" if value is False and properties else ""
    if (match := re.fullmatch(r"(\w+):(\S.*)", value)) and match[1] in properties:
        return f"put a space after the colon: {match[1]}: {match[2]}"
    if similar := _nearest(
        value.lower(), {key.lower(): key for key, part in properties.items() if "properties" in part}
    ):
        return f"write {name}: {{{similar}: {{}}}}"
    if " " in (address := _suggest_uri_field(value, properties)):
        return f"write {name}: {{uri: …}} with {address}"
    if field := _as_one_field(value, properties):
        return f"write {name}: {{{field}}}"
    if "additionalProperties" in schema and (match := re.fullmatch(r"([^=\s]+)=(\S*)", value)):
        return f"write {name}: {{{match[1]}: {match[2]}}}"
    return f"it has the fields {_join(properties)}" if 0 < len(properties) <= MANY else ""


def _as_one_field(value: str, properties: Schema) -> str:
    """Return the field that should hold a text which was written instead of the object; empty if none fits."""
    if (match := S3_ADDRESS.fullmatch(value)) and "bucket" in properties:
        return f"bucket: {match[1]}" + (f", prefix: {match[2].rstrip('/')}" if match[2] else "")
    if "uri" in properties and (uri := _suggest_uri_field(value, properties) or ("://" in value and value)):
        return f"uri: {uri}"
    if "name" in properties:
        return f"name: {value}"
    for key, part in properties.items():
        if value in part.get("enum", ()):
            return f"{key}: {value}"
        if key.endswith("Ref") and not key.endswith(("secretRef", "SecretRef")) and "name" in part["properties"]:
            return f"{key}: {{name: {value}}}"
    return ""


def _suggest_uri_field(value: str, properties: Schema) -> str:
    """Return the address that the text probably means, if the object has a field ``uri``; else an empty text."""
    return suggest_uri(value, properties.get("uri", {}).get("pattern", ""))


def missing(schema: Schema, name: str, given: dict[str, Any]) -> str:
    """Return the message for a required field that is missing."""
    if similar := difflib.get_close_matches(name, given, 1, 0.85):
        return f"is missing: rename {similar[0]}"
    return f"is missing. {schema['description']}" if "description" in schema else "is missing"


def unknown_field(name: str, value: Any, schema: Schema, path: str, root: Schema) -> str:
    """Return the message for an unknown field, with the one that is probably meant."""
    properties: Schema = schema.get("properties", {})
    folded = _fold(name)
    fields = {_fold(key): key for key in properties}
    if folded in fields:
        return f"unknown field: write {fields[folded]}"
    if isinstance(value, str) and (part := properties.get(value.lower())) and part.get("type") == "object":
        return f"unknown field: write {path.rpartition('.')[2]}: {{{value.lower()}: {{}}}}"
    if replacement := _synonym(folded, path, root):
        return f"unknown field: {replacement}"
    if similar := _nearest(folded, fields):
        return f"unknown field: did you mean {similar}?"
    places = list(_find_places(folded, root.get("properties", {}).get("spec", {}), "spec"))
    if candidates := [place for place in places if place.startswith(f"{path}.")] or places:
        return (
            f"unknown field: write {' or '.join(candidates)}"
            if len(candidates) < 3
            else (f"unknown field: write it where it belongs, for example {candidates[0]}")
        )
    if 0 < len(properties) <= MANY:
        return f"unknown field: {path.rpartition('.')[2] or 'the object'} has {_join(properties)}"
    return "unknown field: remove it, or see `kubectl explain` for the fields that exist"


def _synonym(folded: str, path: str, root: Schema) -> str:
    """Return what to write instead of another tool's name for a field; empty if it is unknown."""
    replacement = SYNONYMS.get(folded, "")
    if not replacement or " " in replacement:
        return replacement
    method = re.match(r"spec\.method\.(\w+)", path)
    replacement = replacement.replace("*", method[1] if method else "lora")
    parent, _, name = replacement.rpartition(".")
    if not has_field(root, replacement):
        return ""
    return f"write {name if parent == path else replacement}"


def unknown_root(name: str, names: tuple[str, ...], root: Schema) -> str:
    """Return the message for an unknown field at the top of an object."""
    if similar := _nearest(_fold(name), {_fold(key): key for key in names}):
        return f"unknown field: did you mean {similar}?"
    if has_field(root, f"spec.{name}"):
        return f"unknown field: indent it below spec, as spec.{name}"
    return "unknown field: remove it, or indent it below spec"


def has_field(root: Schema, path: str) -> bool:
    """Return whether a schema has a field at a path like ``spec.model.uri``."""
    for name in path.split("."):
        root = root.get("properties", {}).get(name)
        if root is None:
            return False
    return True


def _find_places(folded: str, schema: Schema, path: str) -> Iterator[str]:
    """Yield the paths of the fields of this name."""
    for key, part in schema.get("properties", {}).items():
        if _fold(key) == folded:
            yield f"{path}.{key}"
        yield from _find_places(folded, part, f"{path}.{key}")


def wrong_choice(value: Any, choices: list[Any]) -> str:
    """Return the message for a value that is none of the choices."""
    message = f"found {show(value)}: write {_join(choices, 'or')}"
    if isinstance(value, str) and (
        similar := _nearest(_fold(value), {_fold(str(choice)): choice for choice in choices})
    ):
        return (
            f"found {show(value)}: did you mean {similar}? Possible are {_join(choices)}"
            if len(choices) > 1
            else message
        )
    return message


def too_short(value: str, schema: Schema) -> str:
    """Return the message for a text that is too short."""
    if not value:
        return "is empty: write a value, or remove the field"
    return f"found {show(value)}: must have at least {schema['minLength']} characters"


def wrong_form(value: Any, schema: Schema) -> str:
    """Return the message for a text that does not match its pattern."""
    pattern = schema["pattern"]
    text = str(value)
    if suggestion := _placeholder(text):
        return f"found {show(value)}: {suggestion}"
    if suggestion := suggest_uri(text, pattern):
        return f"found {show(value)}: write {suggestion}"
    if "Ki|Mi" in pattern:
        return f"found {show(value)}: {_as_quantity(text)}"
    if suggestion := next(
        (spelling for spelling in _spellings(text) if spelling != text and re.search(pattern, spelling)), ""
    ):
        return f"found {show(value)}: write {suggestion}"
    if pattern.startswith("^[a-z0-9]"):
        return (
            f"found {show(value)}: write lower-case letters, digits, - and . only, with a letter or digit at both ends"
        )
    if pattern.startswith("^(([A-Za-z0-9]"):
        return f"found {show(value)}: write letters, digits, -, _ and . only, with a letter or digit at both ends"
    if "description" in schema:
        return f"found {show(value)}, which does not have the right form. {schema['description']}"
    return f"found {show(value)}: must match {pattern}"


def _spellings(text: str) -> Iterator[str]:
    """Yield corrections of a text that does not have the right form, the nearest first."""
    yield text.strip()
    yield text.strip().strip("/")
    if match := S3_ADDRESS.fullmatch(text):
        yield match[1]
    yield f"sha256:{text}"
    if re.fullmatch(r"[\w.-]+:\d+", text):
        yield f"http://{text}"
    if "/" in text or ":" in text:
        yield "".join(text.split())
    else:
        yield re.sub(r"[^A-Za-z0-9_]", "_", text)
        yield re.sub(r"\s+", "-", text.strip())
    if "://" not in text:
        yield re.sub(r"[^a-z0-9.-]+", "-", text.lower()).strip("-.")
        yield re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def suggest_uri(text: str, pattern: str) -> str:
    """Return the address that the text probably means; empty if the pattern is not that of an address."""
    if "://" not in pattern or (not pattern.startswith("^(") and not pattern.startswith("^s3://")):
        return ""
    takes_hub = "hf" in pattern
    if takes_hub and (match := HUB_PAGE.match(text)):
        return f"hf://{match[2]}"
    if match := S3_PAGE.match(text):
        return f"s3://{match[1]}/{match[2]}"
    if match := re.fullmatch(r"(?:s3a|s3n)://(.+)", text):
        return f"s3://{match[1]}"
    if takes_hub and (match := re.fullmatch(r"(?:huggingface|hub|hf):/*(.+)", text)) and HUB_NAME.fullmatch(match[1]):
        return f"hf://{match[1]}"
    if takes_hub and HUB_NAME.fullmatch(text) and not re.search(r"\.(jsonl?|csv|parquet|txt|zst|gz)$", text):
        return f"hf://{text}"
    if (
        re.match(r"(file://|~|\.{0,2}/|[A-Za-z]:\\)|[\w./-]+\.(jsonl?|csv|parquet|txt)$", text)
        and "://" not in text[5:]
    ):
        places = "s3://bucket/key, pvc://claim/path" + (" or configmap://name/key" if "configmap" in pattern else "")
        return f"an address that the cluster can read, {places}"
    return ""


def _as_quantity(text: str) -> str:
    if match := re.fullmatch(r"([\d.]+)\s*([KMGT])(i?)(B|b)?", text, re.IGNORECASE):
        return f"write {match[1]}{match[2].upper()}i"
    return "write a number with a unit, for example 500m (half a CPU) or 16Gi"


def _placeholder(text: str) -> str:
    if match := PLACEHOLDER.search(text):
        return f"replace the placeholder {match[0]}"
    return ""


def _fold(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _nearest(name: str, choices: dict[str, Any]) -> Any:
    similar = difflib.get_close_matches(name, [key for key in choices if key], 1, 0.75)
    return choices[similar[0]] if similar else None


def _join(items: Any, word: str = "and") -> str:
    *others, last = map(str, items)
    return f"{', '.join(others)} {word} {last}" if others else last
