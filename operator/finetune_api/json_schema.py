"""Build a JSON Schema of our kinds for editors, which complete and check a file while it is written.

It is the CRD's schema in the words of draft 7. Rules between fields are CEL's and not in it: ``finetune validate``
knows them all.
"""

import json
from typing import Any

from finetune_api import API_VERSION, crd
from finetune_api.metadata_schema import METADATA
from finetune_api.offline import SPECS, schema_of
from finetune_api.structural import INT_OR_STRING, PRESERVED, Schema

DRAFT = "http://json-schema.org/draft-07/schema#"
MARKER = "Generated from operator/finetune_api by `make generate`: do not edit."
KEPT = (*(key for key in crd.KEPT if not key.startswith("x-kubernetes-")), "required")


def editor_schema() -> str:
    """Return the schema of a file with objects of our kinds; objects of other kinds are not checked."""
    kinds = [
        {"if": {"required": ["kind"], "properties": {"kind": {"const": kind}}}, "then": _of_kind(kind)}
        for kind in SPECS
    ]
    return json.dumps({"$schema": DRAFT, "$comment": MARKER, "type": "object", "allOf": kinds}, indent=1) + "\n"


def _of_kind(kind: str) -> Schema:
    schema = schema_of(kind)
    return {
        "description": schema["description"],
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
        "properties": {
            "apiVersion": {"const": API_VERSION},
            "kind": {"const": kind},
            "metadata": _convert(METADATA),
            "spec": _convert(schema["properties"]["spec"]),
            "status": {"type": "object", "description": schema["properties"]["status"]["description"]},
        },
    }


def _convert(node: Schema) -> dict[str, Any]:
    result: dict[str, Any] = {key: node[key] for key in KEPT if key in node}
    for limit, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if node.get(exclusive):
            result[exclusive] = result.pop(limit)
    if node.get(INT_OR_STRING):
        result["type"] = ["integer", "string"]
    if "items" in node:
        result["items"] = _convert(node["items"])
    if "properties" in node:
        result["properties"] = {name: _convert(part) for name, part in node["properties"].items()}
        if not node.get(PRESERVED):
            result["additionalProperties"] = False
    elif "additionalProperties" in node:
        result["additionalProperties"] = _convert(node["additionalProperties"])
    return result
