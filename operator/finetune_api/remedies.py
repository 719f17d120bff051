"""Explain what is wrong with a field of a YAML file, and what to write there instead."""

import difflib
import math
import re
import shlex
from collections.abc import Iterator
from typing import Any

from finetune_api.synonyms import LOCAL_NAMES, SYNONYMS
from finetune_api.uris import PASSWORD, split_hub_address

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
FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
AMOUNT = r"(\d+(?:\.\d+)?|\.\d+)"
"""A number without sign and exponent."""
DURATION = re.compile(r"(?:(\d+)\s*d)?\s*(?:(\d+)\s*h)?\s*(?:(\d+)\s*m)?\s*(?:(\d+)\s*s)?")
SECONDS_OF = (86_400, 3600, 60, 1)
UNITS_OF_TIME = {"Seconds": 1, "Minutes": 60, "Hours": 3600}
"""Seconds in the unit that the name of a field ends with."""
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
    if isinstance(value, int) and abs(value) >= 10**20:
        return f"{str(value)[:8]}… with {len(str(abs(value)))} digits"
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
    if isinstance(value, str) and kind == "object" and {"text", "completion"} <= schema.get("properties", {}).keys():
        return f"write {name}: {{text: {_quote(value)}}}"
    if isinstance(value, str) and (suggestion := _placeholder(value) or _non_breaking_space(value)):
        return suggestion
    match kind:
        case "integer" | "number":
            return _as_number(value, kind, schema, name)
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


def _as_number(value: Any, kind: str, schema: Schema, name: str) -> str:
    is_percentage = "percent" in name.lower()
    if isinstance(value, float):
        return _round(value, schema, is_percentage)
    if not isinstance(value, str):
        return ""
    text = re.sub(r"^([-+]?\d+),(\d+)$", r"\1.\2", value.strip()) if kind == "number" else value.strip()
    text = text.replace(",", "").replace("_", "")
    if re.fullmatch(r"[-+]?\d+", text) or (kind == "number" and FLOAT.fullmatch(text) and math.isfinite(float(text))):
        return f"write {text} without quotes"
    if match := re.fullmatch(rf"{AMOUNT}\s*%", text):
        if is_percentage:
            return f"write {float(match[1]):g}"
        if kind == "number":
            return f"write {float(match[1]) / 100:g}"
        return "a percentage is not possible here: write the number itself, for example 1"
    if match := re.fullmatch(rf"{AMOUNT}\s*[kK]", text):
        return f"write {float(match[1]) * 1000:.15g}"
    if remedy := _as_time(text, name):
        return remedy
    return "remove the field for its default" if text.lower() in ("auto", "default", "none", "") else ""


def _round(value: float, schema: Schema, is_percentage: bool) -> str:
    """Return the whole numbers near a value that the field can have."""
    if is_percentage and 0 < value < 1 and (percent := round(value * 100, 9)).is_integer():
        return f"write {percent:g}"
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    if not low - 1 < value < high + 1 or abs(value) >= 2**53:
        limits = [f"at least {low:g}"] if low > -math.inf else []
        limits += [f"at most {high:.15g}"] if high < math.inf else []
        return f"write a whole number of {' and '.join(limits)}" if limits else ""
    near = [number for number in (math.floor(value), math.floor(value) + 1) if low <= number <= high]
    return f"write {_join(near, 'or')}"


def _as_time(text: str, name: str) -> str:
    """Return a duration such as 10m or 1h30m in the unit that the name of its field ends with."""
    unit = next((seconds for word, seconds in UNITS_OF_TIME.items() if name.lower().endswith(word.lower())), 0)
    match = DURATION.fullmatch(text.strip())
    if not unit or not match or not any(match.groups()):
        return ""
    seconds = sum(int(number) * size for number, size in zip(match.groups(), SECONDS_OF, strict=True) if number)
    return f"write {math.ceil(seconds / unit)}"


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
        parts = _split_command(value) if name in ("command", "args") else [part.strip() for part in value.split(",")]
        return f"write {name}: [{', '.join(map(_quote, parts))}]"
    properties = items.get("properties", {})
    if isinstance(value, str) and "name" in properties:
        return f"write {name}: [{{name: {value}}}]"
    if isinstance(value, dict) and {"name", "value"} <= properties.keys() and value and not value.keys() & properties:
        key, text = next(iter(value.items()))
        return f'begin each item with -, for example - {{name: {key}, value: "{text}"}}'
    return "begin each item with -" if isinstance(value, dict) else ""


def _split_command(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _quote(text: str) -> str:
    """Write a text as a value within brackets of YAML."""
    return text if re.fullmatch(r"[A-Za-z_./…][\w./:@=+-]*(?<!:)", text) else f"'{text.replace(chr(39), chr(39) * 2)}'"


def _as_object(value: Any, schema: Schema, name: str) -> str:
    properties: Schema = schema.get("properties", {})
    if isinstance(value, list):
        first = value[0] if value else None
        if len(value) == 1 and isinstance(first, str) and properties.get(first, {}).get("type") == "object":
            return f"write {name}: {{{first}: {{}}}}"
        return "remove the - before each field" if all(isinstance(item, dict) for item in value) and value else ""
    if not isinstance(value, str):
        if value is True and properties:
            written = _write_empty(schema)
            return f"write {name}: {written}{' for its defaults' if written == '{}' else ''}"
        return _turn_off(schema, name) if value is False and properties else ""
    if "://" not in value and (match := re.fullmatch(r"(\w+):(\S.*)", value)) and match[1] in properties:
        return f"put a space after the colon: {match[1]}: {match[2]}"
    if similar := _nearest(
        value.lower(), {key.lower(): key for key, part in properties.items() if "properties" in part}
    ):
        return f"write {name}: {{{similar}: {_write_empty(properties[similar])}}}"
    if " " in (address := _suggest_uri_field(value, properties)):
        return f"write {name}: {{uri: …}} with {address}"
    if field := _as_one_field(value, properties):
        return f"write {name}: {{{field}}}"
    if "additionalProperties" in schema and (match := re.fullmatch(r"([^=\s]+)=(\S*)", value)):
        return f"write {name}: {{{match[1]}: {match[2]}}}"
    return f"it has the fields {_join(properties)}" if 0 < len(properties) <= MANY else ""


def _write_empty(schema: Schema) -> str:
    """Write an object with its required fields only."""
    properties: Schema = schema.get("properties", {})
    required: list[str] = schema.get("required", [])
    rules = " ".join(rule["message"] for rule in schema.get("x-kubernetes-validations", []))
    if not required and re.search("exactly one|must be set|needs a limit", rules):  # refuses the empty object
        return f"{{{next(iter(properties))}: …}} (it has the fields {_join(list(properties)[:MANY])})"
    return f"{{{', '.join(f'{field}: {_write_required(properties[field])}' for field in required)}}}"


def _write_required(schema: Schema) -> str:
    if schema.get("type") == "object":
        return _write_empty(schema) if schema.get("required") else "{…}"
    return "[…]" if schema.get("type") == "array" else "…"


def _turn_off(schema: Schema, name: str) -> str:
    """Return how to turn off what an object describes, if it is on without the object too."""
    properties: Schema = schema["properties"]
    if "default" not in schema and not re.search(r"Unset: an? ", schema.get("description", "")):
        return f"remove {name}"
    if switches := [field for field, part in properties.items() if part.get("default") is True]:
        return f"write {name}: {{{', '.join(f'{field}: false' for field in switches)}}}"
    return f"it cannot be turned off; it has the fields {_join(properties)}" if len(properties) <= MANY else ""


def _as_one_field(value: str, properties: Schema) -> str:
    """Return the field that should hold a text which was written instead of the object; empty if none fits."""
    if (match := S3_ADDRESS.fullmatch(value)) and "bucket" in properties:
        return _write_bucket(match)
    if match and _is_bucket(properties.get("s3", {})) and "uri" not in properties:
        return f"s3: {{{_write_bucket(match)}}}"
    if "uri" in properties and (uri := _suggest_uri_field(value, properties) or ("://" in value and value)):
        return f"uri: {uri}"
    if "uri" in properties and re.fullmatch(r"[A-Za-z0-9][\w-]*", value) and "hf" in properties["uri"]["pattern"]:
        return f"uri: hf://{value}"
    if "name" in properties and re.search(properties["name"].get("pattern", ""), value):
        return f"name: {value}"
    for key, part in properties.items():
        if value in part.get("enum", ()):
            return f"{key}: {value}"
        if key.endswith("Ref") and not key.endswith(("secretRef", "SecretRef")) and "name" in part["properties"]:
            return f"{key}: {{name: {value}}}"
    return ""


def _is_bucket(schema: Schema) -> bool:
    return "bucket" in schema.get("properties", {})


def _write_bucket(address: re.Match[str]) -> str:
    return f"bucket: {address[1]}" + (f", prefix: {address[2].rstrip('/')}" if address[2] else "")


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
    if local := _local_name(folded, schema, path):
        return f"unknown field: write {local}"
    if isinstance(value, str) and (part := properties.get(value.lower())) and part.get("type") == "object":
        return f"unknown field: write {path.rpartition('.')[2]}: {{{value.lower()}: {{}}}}"
    if replacement := _synonym(folded, path, root) if path == "spec" or folded not in LOCAL_NAMES else "":
        return f"unknown field: {replacement}"
    if similar := _nearest(folded, fields):
        return f"unknown field: did you mean {similar}?"
    places = list(_find_places(folded, root.get("properties", {}).get("spec", {}), "spec"))
    if candidates := _nearest_places(places, path):
        return (
            f"unknown field: write {' or '.join(candidates)}"
            if len(candidates) < 3
            else (f"unknown field: write it where it belongs, for example {candidates[0]}")
        )
    if 0 < len(properties) <= MANY:
        return f"unknown field: {path.rpartition('.')[2] or 'the object'} has {_join(properties)}"
    return "unknown field: remove it, or see `kubectl explain` for the fields that exist"


def _local_name(folded: str, schema: Schema, path: str) -> str:
    """Return the field of the object, or else of an object in it, that another name probably means."""
    properties: Schema = schema.get("properties", {})
    names = LOCAL_NAMES.get(folded, ())
    if own := next((name for name in names if name in properties), ""):
        return f"{own}: {{name: …}}" if own.endswith("Ref") else own
    if not names or path == "spec":
        return ""
    for name in (folded, *map(_fold, names)):
        if below := list(_find_places(name, schema, path)):
            least = min(place.count(".") for place in below)
            return " or ".join(place for place in below if place.count(".") == least)
    return ""


def _synonym(folded: str, path: str, root: Schema) -> str:
    """Return what to write instead of another tool's name for a field; empty if it is unknown."""
    replacement = SYNONYMS.get(folded, "")
    if " " in replacement:
        named = re.findall(r"\b(?:spec\.[\w.]*\w|method(?=: \{)|secretRef)\b", replacement)
        below_spec = root.get("properties", {}).get("spec", {})
        is_known = [
            has_field(root, name) or any(_find_places(_fold(name), below_spec, "spec"))
            for name in (named or ["spec.training"])
        ]
        return replacement if all(is_known) else ""
    if not replacement:
        return ""
    method = re.match(r"spec\.method\.(\w+)", path)
    replacement = replacement.replace("*", method[1] if method else "lora")
    name = replacement.rpartition(".")[2]
    if has_field(root, f"{path}.{name}"):
        return f"write {name}"
    if not has_field(root, replacement):
        return ""
    return f"write {replacement}"


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


def _nearest_places(places: list[str], path: str) -> list[str]:
    """Return the places that share the most parents with a path."""
    own = path.split(".")

    def count_shared(place: str) -> int:
        pairs = zip(own, place.split("."), strict=False)
        return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(own), place.count(".") + 1))

    most = max(map(count_shared, places), default=0)
    nearest = [place for place in places if count_shared(place) == most]
    if most > 1:  # more than spec: the place that is the least deep below what they share
        least = min(place.count(".") for place in nearest)
        nearest = [place for place in nearest if place.count(".") == least]
    return nearest


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
    if "s3:" in pattern and (match := PASSWORD.match(text)):
        address = f"{match[1]}{text[match.end() :]}"
        return f"found an address with a password in it: write {address}, and name a Secret in secretRef"
    if "pvc:" in pattern and re.match(r"pvc://.*/\.\.(/|$)", text):
        return f"found {show(value)}: the path must not have .. in it: write it from the root of the volume"
    if "hf" in pattern and (parts := split_hub_address(text)):
        return f"found {show(value)}: {parts}"
    if suggestion := _placeholder(text) or _non_breaking_space(text):
        return f"found {show(value)}: {suggestion}"
    if suggestion := suggest_uri(text, pattern):
        return f"found {show(value)}: write {suggestion}"
    if pattern.startswith("^sha256:"):
        digest = re.search(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])", text.lower())
        remedy = f"sha256:{digest[0]}" if digest else "sha256: and 64 lower-case hex digits"
        return f"found {show(value)}: write {remedy}"
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
    if "://" not in text:
        yield re.sub(r"/+", "/", text.strip()).rstrip("/")
    yield text.strip().strip("/")
    if match := S3_ADDRESS.fullmatch(text):
        yield match[1]
    yield f"sha256:{text}"
    if re.fullmatch(r"[\w.-]+:\d+", text):
        yield f"http://{text}"
    if text.startswith("hf://"):
        return
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
    if match := re.fullmatch(rf"{AMOUNT}\s*([KMGT])(i?)(B|b)?", text, re.IGNORECASE):
        return f"write {'0' if match[1].startswith('.') else ''}{match[1]}{match[2].upper()}i"
    if match := re.fullmatch(rf"{AMOUNT}(m?)", text):
        return f"write {'0' if match[1].startswith('.') else ''}{match[1]}{match[2]}"
    return "write a number with a unit, for example 500m (half a CPU) or 16Gi"


def _placeholder(text: str) -> str:
    if match := PLACEHOLDER.search(text):
        return f"replace the placeholder {match[0]}"
    return ""


def _non_breaking_space(text: str) -> str:
    return "it has a non-breaking space (U+00A0): write an ordinary space, or none" if "\u00a0" in text else ""


def _fold(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _nearest(name: str, choices: dict[str, Any]) -> Any:
    similar = difflib.get_close_matches(name, [key for key in choices if key], 1, 0.75)
    return choices[similar[0]] if similar else None


def _join(items: Any, word: str = "and") -> str:
    *others, last = map(str, items)
    return f"{', '.join(others)} {word} {last}" if others else last
