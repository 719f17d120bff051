"""Draw objects that are valid and wild in content: right files, of which some fields get any value of their schema."""

import copy
import random
import string
from collections.abc import Iterator
from functools import cache
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from finetune_api.offline import schema_of, validate
from finetune_api.structural import INT_OR_STRING, PRESERVED, Schema
from finetune_cli.yaml_reader import read_yaml
from tests.api.corpus_cases import GOOD

T = TypeVar("T")
Object = dict[str, Any]
Path = tuple[str, ...]
MOST_CHANGES = 10
MOST_ITEMS = 3
MANY, MOST_VALUES, FEW_VALUES = 500, 40, 5
"""For so many objects, and for fewer, so many values of each field are drawn."""
NASTY = (
    "",
    " ",
    "-",
    "0",
    "1e400",
    "NaN",
    "null",
    "true",
    "a\0b",
    "a\r\nb: c",
    "$(HOME)",
    "$$(FINETUNE_JOB)",
    "${PATH}",
    "`id`",
    "{{ 7 * 7 }}",
    "%s%n",
    "../../etc/passwd",
    "'\"\\",
    "\ufeff\u202eabc",
    "🦜" * 20,
    "a" * 63,
    "a" * 64,
    "a" * 253,
    "x" * 5000,
)
TEXTS = st.text(max_size=20) | st.sampled_from(NASTY)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from((0, 1, -1, 2**31, 2**53))
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
NAMES = st.from_regex(r"[a-z]([-a-z0-9.]{0,200}[a-z0-9])?", fullmatch=True)
LABEL_VALUES = st.from_regex(r"[a-z0-9]{0,63}", fullmatch=True)
LABELS = ("app", "team.example.com/part", "kueue.x-k8s.io/queue-name", "finetune-operator.io/finetunejob")
ANNOTATIONS = (
    "note",
    "finetune-operator.io/finetunejob",
    "finetune-operator.io/role",
    "finetune-operator.io/rollback",
    "finetune-operator.io/deployment",
)


def draw_objects(kind: str, number: int, choices: dict[Path, list[Any]] | None = None) -> list[Object]:
    """Draw valid objects of a kind, always the same ones. ``choices`` has paths of the spec that get one of a list."""
    rng = random.Random(kind)
    size = MOST_VALUES if number >= MANY else FEW_VALUES
    resources = []
    for index in range(number):
        resource = copy.deepcopy(rng.choice(list_right_objects(kind)))
        resource["metadata"] = _draw_metadata(rng, size)
        if validate(resource)[1]:
            resource["metadata"] = {"name": "plain"}
        resource["metadata"]["name"] += f"-{index}"
        for path, chosen in (choices or {}).items():
            resource = _change(resource, path, rng.choice(chosen)) or resource
        for _ in range(rng.randint(1, MOST_CHANGES)):
            path = rng.choice(list_paths(kind))
            resource = _change(resource, path, rng.choice(_values_at(kind, path, size))) or resource
        resources.append(resource)
    return resources


def _draw_metadata(rng: random.Random, size: int) -> Object:
    return {
        "name": rng.choice(draw(NAMES, size)),
        "labels": {name: rng.choice(draw(LABEL_VALUES, size)) for name in rng.sample(LABELS, 2)},
        "annotations": {name: rng.choice(draw(TEXTS, size)) for name in rng.sample(ANNOTATIONS, 2)},
    }


@cache
def draw(strategy: st.SearchStrategy[T], number: int) -> tuple[T, ...]:
    """Draw examples of a strategy, always the same ones."""
    drawn: list[T] = []

    @seed(1)
    @settings(
        max_examples=number,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(value: T) -> None:
        drawn.append(value)

    collect()
    return tuple(drawn)


@cache
def list_right_objects(kind: str) -> list[Object]:
    """List the right files of the corpus that have objects of this kind."""
    resources = []
    for case in GOOD:
        documents = [document.value for document in read_yaml(case.content)]
        resources += [value for value in documents if value.get("kind") == kind and not validate(value)[1]]
    return resources


@cache
def list_paths(kind: str) -> list[Path]:
    """List the fields and sections of a kind's spec, those of lists excepted."""
    return list(_walk(schema_of(kind)["properties"]["spec"], ()))


def _walk(schema: Schema, path: Path) -> Iterator[Path]:
    for name, part in schema.get("properties", {}).items():
        yield (*path, name)
        yield from _walk(part, (*path, name))


@cache
def _values_at(kind: str, path: Path, number: int) -> tuple[Any, ...]:
    schema = schema_of(kind)["properties"]["spec"]
    for name in path:
        schema = schema["properties"][name]
    return draw(values(schema), number)


def values(schema: Schema) -> st.SearchStrategy[Any]:
    """Return any value of a structural schema; its CEL rules may still refuse it."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema.get(INT_OR_STRING):
        return st.integers(0, 2**40) | _texts(schema)
    match schema.get("type"):
        case "object" if "properties" in schema:
            parts = {name: values(part) for name, part in schema["properties"].items()}
            required = {name: parts.pop(name) for name in schema.get("required", ())}
            return st.fixed_dictionaries(required, optional=parts)
        case "object" if "additionalProperties" in schema:
            names = TEXTS | st.text(string.ascii_lowercase + "./-", min_size=1, max_size=10)
            return st.dictionaries(names, values(schema["additionalProperties"]), max_size=MOST_ITEMS)
        case "object":
            return st.dictionaries(TEXTS, ANYTHING, max_size=MOST_ITEMS)
        case "array":
            max_items = min(MOST_ITEMS, schema.get("maxItems", MOST_ITEMS))
            return st.lists(values(schema["items"]), min_size=schema.get("minItems", 0), max_size=max_items)
        case "string":
            return _texts(schema)
        case "boolean":
            return st.booleans()
        case "integer" | "number" as kind:
            return _numbers(schema, kind)
    assert schema.get(PRESERVED), schema
    return ANYTHING


def _texts(schema: Schema) -> st.SearchStrategy[str]:
    if "pattern" not in schema:
        return TEXTS
    # $ of Python also matches before a newline at the end, \Z does not
    return st.from_regex(schema["pattern"].replace("$", r"\Z")) | st.sampled_from(NASTY)


def _numbers(schema: Schema, kind: str) -> st.SearchStrategy[Any]:
    low, high = schema.get("minimum"), schema.get("maximum")
    if kind == "integer":
        low, high = low if low is not None else -(2**63), high if high is not None else 2**63 - 1
        return st.integers(int(low), int(high)) | st.sampled_from((int(low), int(high)))
    return st.floats(low, high, allow_nan=False, allow_infinity=False)


def _change(resource: Object, path: Path, value: Any) -> Object | None:
    """Return the object with another value at a path below its spec; None if that is not valid."""
    changed = copy.deepcopy(resource)
    section = changed["spec"]
    if path[0] == "method" and len(path) > 1:
        section["method"] = {path[1]: section.get("method", {}).get(path[1], {})}  # exactly one
    for name in path[:-1]:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            return None
    section[path[-1]] = value
    return None if validate(changed)[1] else changed
