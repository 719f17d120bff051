"""Check an object as the API server and the operator do, without either of them.

The CRD's own schema is checked first, then the models: their validators check what the CRD's CEL rules check, and what
only the operator refuses (``Accepted`` is False).
"""

import difflib
import re
from functools import cache
from typing import Any

from pydantic import ValidationError

from finetune_api import API_VERSION, GROUP
from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.base import Model
from finetune_api.crd import adapterdeployment_crd, finetunejob_crd, models_of
from finetune_api.dataset import WORKSTATION
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.messages import Problem
from finetune_api.metadata_schema import METADATA, find_wrong_names
from finetune_api.methods.method import ONE_METHOD
from finetune_api.remedies import show, unknown_root
from finetune_api.structural import Schema, fill_in, find_problems, find_unknown
from finetune_api.validation import problems

Object = dict[str, Any]
SPECS: dict[str, type[Model]] = {"FineTuneJob": FineTuneJobSpec, "AdapterDeployment": AdapterDeploymentSpec}
ROOT_FIELDS = ("apiVersion", "kind", "metadata", "spec", "status")
CHOICE = re.compile(r"exactly one of (\w+(?:, \w+)* and \w+) must be set")
DATA_FIELDS = ("spec.model.uri", "spec.dataset.uri", "spec.dataset.validation.uri", "spec.evaluation.forgetting.uri")
"""Fields that may be ``file://`` on a workstation. The models say when."""


def is_ours(resource: Any) -> bool:
    """Return whether an object is, or was meant to be, of one of our kinds. Others are not checked."""
    if not isinstance(resource, dict):
        return True
    version, kind = str(resource.get("apiVersion") or ""), str(resource.get("kind") or "")
    if version.startswith(f"{GROUP}/") or not version or not kind:
        return True
    return kind.lower() in [name.lower() for name in SPECS]


def validate(resource: Any, *, workstation: bool = False) -> tuple[Object, list[Problem]]:
    """Check an object.

    Args:
        resource: The object, as it is sent: JSON values.
        workstation: Whether model and data may be ``file://``.

    Returns:
        The object with its defaults, and its problems. If there is a problem, the object may be incomplete.
    """
    if kind_problems := _find_wrong_kind(resource):
        return {}, kind_problems
    schema = schema_of(resource["kind"])
    result = {name: value for name, value in resource.items() if value is not None}
    root_problems = [
        Problem(field=name, message=unknown_root(name, ROOT_FIELDS, schema))
        for name in result
        if name not in ROOT_FIELDS
    ]
    metadata = result["metadata"] = fill_in(result.get("metadata", {}), METADATA)
    root_problems += find_wrong_names(metadata)
    root_problems += find_unknown(result.get("status"), schema["properties"]["status"], "status", schema)
    if "spec" not in result:
        return result, [
            *root_problems,
            Problem(field="spec", message="is missing: write the fields of the object below spec"),
        ]
    spec = result["spec"] = fill_in(result["spec"], schema["properties"]["spec"])
    spec_problems = [
        *find_unknown(spec, schema["properties"]["spec"], "spec", schema),
        *find_problems(spec, schema["properties"]["spec"], "spec"),
    ]
    if workstation:
        spec_problems = [problem for problem in spec_problems if not _is_local_file(problem.field, result)]
    if not spec_problems:
        try:
            SPECS[resource["kind"]].model_validate(spec, context={WORKSTATION: workstation})
        except ValidationError as error:
            fields = fields_of_rules(resource["kind"])
            spec_problems = [part for problem in problems(error, "spec") for part in _place(problem, fields)]
            spec_problems = [
                _explain_choice(_explain_method(problem, resource["spec"]), result) for problem in spec_problems
            ]
    return result, [*root_problems, *spec_problems]


def read_field(resource: Object, path: str) -> Any:
    """Return the value at a path like ``spec.model.uri`` or ``spec.env[0].name``; None if there is none."""
    value: Any = resource
    for name in re.findall(r"[^.\[\]]+", path):
        if isinstance(value, list):
            value = value[int(name)] if name.isdecimal() and int(name) < len(value) else None
        else:
            value = value.get(name) if isinstance(value, dict) else None
    return value


@cache
def schema_of(kind: str) -> Schema:
    """Return the schema of a kind's objects, as in its CRD."""
    crd = {"FineTuneJob": finetunejob_crd, "AdapterDeployment": adapterdeployment_crd}[kind]()
    schema: Schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


@cache
def fields_of_rules(kind: str) -> dict[str, str]:
    """Return the field below its model to which each rule of the CRD attaches its message."""
    return {rule["message"]: rule.get("fieldPath", "") for part in models_of(SPECS[kind]) for rule in part.cel_rules}


def _place(problem: Problem, fields: dict[str, str]) -> list[Problem]:
    """Return a problem for each broken rule, with the field that the API server names."""
    messages = [problem.message] if problem.message in fields else problem.message.split("; ")
    if not all(message in fields for message in messages):
        return [problem]
    return [Problem(field=f"{problem.field}{fields[message]}", message=message) for message in messages]


def _explain_method(problem: Problem, spec: Object) -> Problem:
    """Name the methods that were found, if there is not exactly one."""
    if problem.message != ONE_METHOD:
        return problem
    methods: Object = spec.get("method") or {}
    if unset := [name for name, value in methods.items() if value is None]:
        explanation = f"{unset[0]} has no value: write {unset[0]}: {{}}"
    else:
        explanation = (
            f"found {' and '.join(methods)}: keep one" if methods else "found none: write lora: {}, for example"
        )
    return problem.model_copy(update={"message": f"exactly one method must be set; {explanation}"})


def _explain_choice(problem: Problem, resource: Object) -> Problem:
    """Name the fields that were found, if exactly one of several must be set."""
    match = CHOICE.fullmatch(problem.message)
    value = read_field(resource, problem.field)
    if not match or not isinstance(value, dict):
        return problem
    names = re.split(r", | and ", match[1])
    found = [name for name in names if name in value]
    explanation = f"found {' and '.join(found)}: keep one" if found else "found none"
    return problem.model_copy(update={"message": f"{problem.message}; {explanation}"})


def _find_wrong_kind(resource: Any) -> list[Problem]:
    if not isinstance(resource, dict):
        return [Problem(field="", message=f"is not a Kubernetes object: found {show(resource)}")]
    kind_problems = []
    kind, version = resource.get("kind"), resource.get("apiVersion")
    if version != API_VERSION:
        state = "is missing" if version is None else f"found {show(version)}"
        kind_problems.append(Problem(field="apiVersion", message=f"{state}: write {API_VERSION}"))
    if not isinstance(kind, str) or kind not in SPECS:
        lower = {name.lower(): name for name in SPECS}
        near = difflib.get_close_matches(str(kind).lower(), lower, 1, 0.6)
        state = "is missing" if kind is None else f"found {show(kind)}"
        names = [lower[name] for name in near] or list(SPECS)
        kind_problems.append(Problem(field="kind", message=f"{state}: write {' or '.join(names)}"))
    return kind_problems


def _is_local_file(path: str, resource: Object) -> bool:
    """Return whether a field names a model or data on the workstation."""
    value = read_field(resource, path) if path in DATA_FIELDS else None
    return isinstance(value, str) and value.startswith("file://")
