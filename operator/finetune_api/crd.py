"""Build the CustomResourceDefinitions from the pydantic models; ``make generate`` writes them.

Kubernetes requires a structural schema, without references, nullable unions and titles. Pydantic's schema has all
three, so it is inlined and stripped.
"""

from typing import Any, get_args

import yaml

from finetune_api import GROUP, VERSION
from finetune_api.adapterdeployment import AdapterDeploymentSpec, AdapterDeploymentStatus
from finetune_api.base import Model
from finetune_api.finetunejob import FineTuneJobSpec, FineTuneJobStatus
from finetune_api.limits import MAX_NAME

UNKNOWN_READY = {
    "type": "Ready",
    "status": "Unknown",
    "reason": "Pending",
    "message": "waiting for the operator",
    "lastTransitionTime": "1970-01-01T00:00:00Z",
}
"""Default condition: until the first status write an object must not look current to GitOps tools."""

KEPT = (
    "type", "description", "enum", "default", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
    "maxProperties", "pattern", "format", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
)  # fmt: skip
"""Keys that a structural schema takes from pydantic's schema unchanged."""


def finetunejob_crd() -> dict[str, Any]:
    """Return the CustomResourceDefinition of FineTuneJob."""
    return _crd(
        "FineTuneJob",
        "ftj",
        "Trains an adapter from a model, a dataset and a method, verifies it, and stores it in S3.",
        FineTuneJobSpec,
        FineTuneJobStatus,
        [
            _column("Phase", "string", ".status.phase"),
            _column("Step", "integer", ".status.progress.step"),
            _column("Percent", "integer", ".status.progress.percent"),
            _column("Loss", "number", ".status.progress.loss"),
            _column("ETA", "integer", ".status.progress.etaSeconds", "Seconds to the last step"),
            _column("Tok/s", "number", ".status.progress.tokensPerSecond", priority=1),
            _column("Ready", "string", '.status.conditions[?(@.type=="Ready")].status'),
            _column("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason'),
            _column("Adapter", "string", ".status.adapter.uri", priority=1),
        ],
    )


def adapterdeployment_crd() -> dict[str, Any]:
    """Return the CustomResourceDefinition of AdapterDeployment."""
    return _crd(
        "AdapterDeployment",
        "adp",
        "Serves a finished adapter on every pod of an inference workload, and proves it on each.",
        AdapterDeploymentSpec,
        AdapterDeploymentStatus,
        [
            _column("Served Name", "string", ".spec.servedName"),
            _column("Target", "string", ".status.target"),
            _column("Updated", "integer", ".status.pods.updated"),
            _column("Pods", "integer", ".status.pods.total"),
            _column("Ready", "string", '.status.conditions[?(@.type=="Ready")].status'),
            _column("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason'),
            _column("Digest", "string", ".status.active.digest", priority=1),
        ],
    )


def to_yaml(resource: dict[str, Any]) -> str:
    """Return the resource as YAML, with its keys in the order in which they were built."""
    text = yaml.dump(resource, Dumper=_PlainDumper, sort_keys=False, width=140, allow_unicode=True)
    return f"# Generated from operator/finetune_api by `make generate`: do not edit.\n{text}"


class _PlainDumper(yaml.SafeDumper):
    """YAML dumper that repeats equal parts in place of anchors, as Kubernetes' own YAML does."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _crd(
    kind: str, short: str, description: str, spec: type[Model], status: type[Model], columns: list[dict[str, Any]]
) -> dict[str, Any]:
    plural = f"{kind.lower()}s"
    status_schema = _schema(status, defaults=False)
    status_schema["properties"]["conditions"]["default"] = [UNKNOWN_READY]
    status_schema["default"] = {}
    root: dict[str, Any] = {
        "type": "object",
        "description": description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _schema(spec),
            "status": status_schema,
        },
    }
    root["x-kubernetes-validations"] = [
        {
            "rule": f"self.metadata.name.size() <= {MAX_NAME}",
            "message": f"metadata.name must have at most {MAX_NAME} characters",
        }
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}", "labels": {"app.kubernetes.io/name": "finetune-operator"}},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["finetune"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": root},
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [*columns, _column("Age", "date", ".metadata.creationTimestamp")],
                }
            ],
        },
    }


def _column(name: str, kind: str, path: str, description: str = "", priority: int = 0) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path}
    if description:
        column["description"] = description
    if priority:
        column["priority"] = priority
    return column


def _schema(model: type[Model], defaults: bool = True) -> dict[str, Any]:
    """Return the structural schema of a model, with its CEL rules.

    Args:
        model: The model.
        defaults: Write default values. False for a status, which has none.
    """
    raw = model.model_json_schema(by_alias=True)
    models = {model_class.__name__: model_class for model_class in models_of(model)}
    return _structural(raw, raw.get("$defs", {}), models, model.__name__, defaults)


def _structural(
    node: dict[str, Any], definitions: dict[str, Any], models: dict[str, type[Model]], name: str | None, defaults: bool
) -> dict[str, Any]:
    """Convert a node of pydantic's schema to a structural schema; ``name`` is the model that it describes, if any."""
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[-1]
        node = {**definitions[name], **{key: value for key, value in node.items() if key != "$ref"}}
    if node.get("x-kubernetes-preserve-unknown-fields"):
        return {key: node[key] for key in KEPT if key in node and (defaults or key != "default")}
    branches = [branch for branch in node.get("anyOf", []) if branch.get("type") != "null"]
    if {branch.get("type") for branch in branches} == {"integer", "string"}:
        schema: dict[str, Any] = {key: node[key] for key in ("description", "pattern") if key in node}
        return {**schema, "x-kubernetes-int-or-string": True}
    if branches:
        (branch,) = branches
        outer = {
            key: value for key, value in node.items() if key != "anyOf" and not (key == "default" and value is None)
        }
        result = _structural({**branch, **outer}, definitions, models, None, defaults)
        if result.get("default") == {}:
            del result["default"]  # an optional section is unset unless the user writes it
        return result

    result = {key: node[key] for key in KEPT if key in node and (defaults or key != "default")}
    if "const" in node:
        result["enum"] = [node["const"]]
    if "exclusiveMinimum" in node:
        result |= {"minimum": node["exclusiveMinimum"], "exclusiveMinimum": True}
    if "exclusiveMaximum" in node:
        result |= {"maximum": node["exclusiveMaximum"], "exclusiveMaximum": True}
    if "properties" in node:
        result["properties"] = {
            key: _structural(value, definitions, models, None, defaults) for key, value in node["properties"].items()
        }
        if node.get("required"):
            result["required"] = node["required"]
    if isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = _structural(node["additionalProperties"], definitions, models, None, defaults)
    if "items" in node:
        result["items"] = _structural(node["items"], definitions, models, None, defaults)
        result["items"].pop("default", None)
        _declare_list_map(result)
    model = models.get(name or "")
    if model is not None and model.cel_rules and defaults:
        result["x-kubernetes-validations"] = model.cel_rules
    if model is not None and "default" not in result and defaults and _all_optional(model) and not _exactly_one(model):
        result["default"] = {}
    return result


def _declare_list_map(node: dict[str, Any]) -> None:
    """Declare a list of conditions as a list-map, so that two writers do not overwrite each other."""
    properties = node["items"].get("properties", {})
    if {"type", "status", "lastTransitionTime"} <= properties.keys():
        node |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}


def _all_optional(model: type[Model]) -> bool:
    return not any(field.is_required() for field in model.model_fields.values())


def _exactly_one(model: type[Model]) -> bool:
    """Return whether the model is a choice of one field. It has no default: an empty object would break its rule."""
    return any("exactly one" in rule["message"] for rule in model.cel_rules)


def models_of(model: type[Model]) -> list[type[Model]]:
    """Return the model and every model that can be part of it."""
    models: list[type[Model]] = [model]
    for part in models:
        kinds = [kind for field in part.model_fields.values() for kind in models_in(field.annotation)]
        models.extend(kind for kind in dict.fromkeys(kinds) if kind not in models)
    return models


def models_in(annotation: Any) -> list[type[Model]]:
    """Return the models that an annotation names, for example ``Toleration`` for ``list[Toleration] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return [annotation]
    return [kind for argument in get_args(annotation) for kind in models_in(argument)]
