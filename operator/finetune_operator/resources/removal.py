"""Build what takes the agent out of an inference Deployment again. Pure."""

from typing import Any

from finetune_api.messages import ADAPTERS_DIRECTORY
from finetune_engines import ENGINES
from finetune_operator.kube.kinds import DEPLOYMENT_ANNOTATION, FIELD_MANAGER, ROLE_LABEL
from finetune_operator.kube.ownership import field_step, find_owners, item_step
from finetune_operator.resources.injected import (
    ADAPTERS_VOLUME,
    AGENT_CONTAINER,
    find_agent,
    find_copiers,
    identify,
)

_CONTAINERS = tuple(map(field_step, ("spec", "template", "spec", "containers")))


def build_removal(deployment: dict[str, Any]) -> dict[str, Any]:
    """Build the body that gives up our fields: the API server removes those that nobody else owns."""
    return {"metadata": identify(deployment)}


def build_removal_of_copy(deployment: dict[str, Any]) -> dict[str, Any] | None:
    """Build the strategic merge patch that removes our part of the pods' template, which somebody else owns, too.

    Returns None if nobody else owns it: then ``build_removal`` is enough.
    """
    agent, copiers = find_agent(deployment), find_copiers(deployment)
    if agent is None or not copiers:
        return None
    spec = deployment["spec"]["template"]["spec"]
    ours = {mount["name"] for mount in agent.get("volumeMounts") or []}
    engines = [_build_engine(deployment, engine, copiers) for engine in spec["containers"] if _is_engine(engine)]
    return {
        "metadata": {"uid": deployment["metadata"]["uid"]},
        "spec": {
            "template": {
                "metadata": {"labels": {ROLE_LABEL: None}, "annotations": {DEPLOYMENT_ANNOTATION: None}},
                "spec": {
                    "initContainers": [{"name": AGENT_CONTAINER, "$patch": "delete"}],
                    "volumes": [{"name": name, "$patch": "delete"} for name in sorted(ours)],
                    **({"containers": engines} if engines else {}),
                },
            }
        },
    }


def _is_engine(container: dict[str, Any]) -> bool:
    return any(mount["name"] == ADAPTERS_VOLUME for mount in container.get("volumeMounts") or [])


def _build_engine(deployment: dict[str, Any], engine: dict[str, Any], copiers: set[str]) -> dict[str, Any]:
    """Build the removal of the mount, and of the variables that only we and the copiers own."""
    path = [*_CONTAINERS, item_step(name=engine["name"]), field_step("env")]
    names = sorted({name for known in ENGINES.values() for name in known.environment})
    variables = [
        name
        for name in names
        if (owners := find_owners(deployment, [*path, item_step(name=name)])) and owners <= copiers | {FIELD_MANAGER}
    ]
    patch = {"name": engine["name"], "volumeMounts": [{"mountPath": ADAPTERS_DIRECTORY, "$patch": "delete"}]}
    if variables:
        patch["env"] = [{"name": name, "$patch": "delete"} for name in variables]
    return patch
