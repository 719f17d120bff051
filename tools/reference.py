"""Generate the pages below docs/reference from the same models as the CRDs and the chart."""

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from finetune_api.reasons import EXIT_CODES, USER_ERRORS, Reason
from tools.values import ChartValues, Section

HEADER = "<!-- Generated from operator/finetune_api and tools/values.py by `make generate`: do not edit. -->\n"
Schema = dict[str, Any]


def kind_page(crd: Schema) -> str:
    """Return the page of a kind: a table for each of its objects, a row for each field."""
    names, version = crd["spec"]["names"], crd["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    lines = [
        HEADER,
        f"# {names['kind']}",
        "",
        schema["description"],
        "",
        f"`apiVersion: {crd['spec']['group']}/{version['name']}`, `kind: {names['kind']}`; "
        f"short name `{names['shortNames'][0]}`. "
        f"The same with kubectl: `kubectl explain {names['singular']}.spec --recursive`.",
    ]
    for part in ("spec", "status"):
        for path, node in _objects(schema["properties"][part], part):
            lines += ["", f"## {path}", "", node.get("description", ""), "", *_table(node), *_rules(node)]
    return "\n".join(lines) + "\n"


def values_page() -> str:
    """Return the page with every value of the chart."""
    rows = [
        f"| `{path}` | {_cell(default)} | {_escape(description)} |"
        for path, default, description in _values(ChartValues())
    ]
    return (
        "\n".join([HEADER, "# Values of the chart", "", "| value | default | meaning |", "|---|---|---|", *rows]) + "\n"
    )


def reasons_page() -> str:
    """Return the page with every reason, its exit code, and what happens after an attempt that ended with it."""
    rows = [
        f"| [{reason}](../troubleshooting.md#{reason.lower()}) | {EXIT_CODES.get(reason, '')} | {_retry_text(reason)} |"
        for reason in Reason
    ]
    return (
        "\n".join(
            [
                HEADER,
                "# Reasons",
                "",
                "The `reason` of a condition, of an attempt (`status.attempts[]`) or of a pod (`status.podStatus[]`). "
                "[Troubleshooting](../troubleshooting.md) says what each means and what to do. "
                "The exit code is that of the preflight's or the trainer's container.",
                "",
                "| reason | exit code | after an attempt that ended with it |",
                "|---|---|---|",
                *rows,
            ]
        )
        + "\n"
    )


def _retry_text(reason: Reason) -> str:
    if reason in USER_ERRORS:
        return "no further attempt"
    if reason is Reason.PREEMPTED:
        return "another one, up to `failurePolicy.retries.onPreemption`"
    if reason is Reason.OUT_OF_MEMORY:
        return (
            "another one at once with less memory (`failurePolicy.outOfMemory`), "
            "up to `failurePolicy.retries.onOutOfMemory`"
        )
    if reason is Reason.NODE_ERROR:
        return "another one after a pause, if possible on another node, up to `failurePolicy.retries.onPreemption`"
    if reason is Reason.STALLED:
        return "another one after a pause, up to `failurePolicy.retries.onStall`"
    if reason in EXIT_CODES or reason in (Reason.IMAGE_PULL_FAILED, Reason.PREFLIGHT_ERROR):
        return "another one after a pause, up to `failurePolicy.retries.onError`"
    return ""


def _objects(node: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Yield path and schema of each object that has fields of its own, from the outside in."""
    yield path, node
    for name, child in node["properties"].items():
        inner, suffix = (child["items"], "[]") if child.get("type") == "array" else (child, "")
        if "properties" in inner:
            text = inner if suffix == "" else {**inner, "description": child["description"]}
            yield from _objects(text, f"{path}.{name}{suffix}")


def _table(node: Schema) -> list[str]:
    required = node.get("required", [])
    rows = [
        f"| `{name}`{' (required)' if name in required else ''} | {_type(child)} | {_default(child)} "
        f"| {_escape(child['description'])} |"
        for name, child in node["properties"].items()
    ]
    return ["| field | type | default | meaning |", "|---|---|---|---|", *rows]


def _rules(node: Schema) -> list[str]:
    rules = [f"- {rule['message']}" for rule in node.get("x-kubernetes-validations", [])]
    return ["", "The API server refuses what breaks a rule:", "", *rules] if rules else []


def _type(node: Schema) -> str:
    if "enum" in node:
        return " or ".join(f"`{value}`" for value in node["enum"])
    if node.get("type") == "array":
        return f"list of {_type(node['items'])}"
    if isinstance(node.get("additionalProperties"), dict):
        return f"map of {_type(node['additionalProperties'])}"
    if node.get("x-kubernetes-preserve-unknown-fields"):
        return "string or list of string"
    if node.get("x-kubernetes-int-or-string"):
        return "integer or string"
    return f"{node['type']}{_bounds(node)}"


def _bounds(node: Schema) -> str:
    bounds = []
    if "minimum" in node:
        bounds.append(f"{'>' if node.get('exclusiveMinimum') else '≥'} {node['minimum']}")
    if "maximum" in node:
        bounds.append(f"{'<' if node.get('exclusiveMaximum') else '≤'} {node['maximum']}")
    return f", {', '.join(bounds)}" if bounds else ""


def _default(node: Schema) -> str:
    return _cell(node["default"]) if "default" in node and node["default"] != {} else ""


def _values(section: BaseModel, path: str = "") -> Iterator[tuple[str, Any, str]]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _values(value, f"{path}{field.alias}.")
        else:
            yield f"{path}{field.alias}", value, field.description or ""


def _cell(value: Any) -> str:
    return f"`{_escape(json.dumps(value, ensure_ascii=False))}`"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
