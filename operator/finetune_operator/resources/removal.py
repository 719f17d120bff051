"""Build the patches that remove the agent from an inference workload. Pure."""

from typing import Any

from finetune_api.messages import ADAPTERS_DIRECTORY
from finetune_api.version_paths import VARIABLE_PREFIX
from finetune_engines import ENGINES
from finetune_operator.kube.kinds import DEPLOYMENT_ANNOTATION, FIELD_MANAGER, ROLE_LABEL
from finetune_operator.kube.ownership import field_step, find_owners, item_step
from finetune_operator.resources.injected import (
    ADAPTERS_VOLUME,
    AGENT_CONTAINER,
    FETCH_CONTAINER,
    INJECTION_ANNOTATION,
    VERSIONS_ANNOTATION,
    find_agent,
    find_copiers,
    identify,
    is_rolling,
)

_CONTAINERS = tuple(map(field_step, ("spec", "template", "spec", "containers")))


def build_removal(workload: dict[str, Any]) -> dict[str, Any]:
    """Build the body of an apply without fields: the API server removes our fields that nobody else owns."""
    return {"metadata": identify(workload)}


def build_removal_of_copy(workload: dict[str, Any]) -> dict[str, Any] | None:
    """Build the strategic merge patch that removes our part of the template, if others own it as well.

    Returns None if no other manager owns it: then ``build_removal`` is enough.
    """
    agent, copiers = find_agent(workload), find_copiers(workload)
    if agent is None or not copiers:
        return None
    spec = workload["spec"]["template"]["spec"]
    own_volumes = {volume["name"] for volume in spec.get("volumes") or [] if volume["name"].startswith("finetune-")}
    rolling = is_rolling(workload)
    annotations = [DEPLOYMENT_ANNOTATION, *([VERSIONS_ANNOTATION] if rolling else [])]
    containers = [AGENT_CONTAINER, *([FETCH_CONTAINER] if rolling else [])]
    engines = [_build_engine(workload, engine, copiers) for engine in spec["containers"] if _is_engine(engine)]
    return {
        "metadata": {"uid": workload["metadata"]["uid"], "annotations": {INJECTION_ANNOTATION: None}},
        "spec": {
            "template": {
                "metadata": {"labels": {ROLE_LABEL: None}, "annotations": dict.fromkeys(annotations)},
                "spec": {
                    "initContainers": [{"name": name, "$patch": "delete"} for name in containers],
                    "volumes": [{"name": name, "$patch": "delete"} for name in sorted(own_volumes)],
                    **({"containers": engines} if engines else {}),
                },
            }
        },
    }


def _is_engine(container: dict[str, Any]) -> bool:
    return any(mount["name"] == ADAPTERS_VOLUME for mount in container.get("volumeMounts") or [])


def _build_engine(workload: dict[str, Any], engine: dict[str, Any], copiers: set[str]) -> dict[str, Any]:
    """Build the removal of the engine's mount, and of variables that only operator and copiers own."""
    path = [*_CONTAINERS, item_step(name=engine["name"]), field_step("env")]
    paths = [entry["name"] for entry in engine.get("env") or [] if entry["name"].startswith(VARIABLE_PREFIX)]
    names = sorted({*paths, *(name for known in ENGINES.values() for name in known.environment)})
    variables = [
        name
        for name in names
        if (owners := find_owners(workload, [*path, item_step(name=name)])) and owners <= copiers | {FIELD_MANAGER}
    ]
    patch = {"name": engine["name"], "volumeMounts": [{"mountPath": ADAPTERS_DIRECTORY, "$patch": "delete"}]}
    if variables:
        patch["env"] = [{"name": name, "$patch": "delete"} for name in variables]
    return patch
