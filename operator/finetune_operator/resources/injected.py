"""Read what of ours an inference Deployment has, and whether its pods are being replaced. Pure."""

from typing import Any

from finetune_api import GROUP
from finetune_operator.kube.kinds import FIELD_MANAGER
from finetune_operator.kube.ownership import field_step, find_entries, find_owners, item_step

AGENT_CONTAINER = "finetune-agent"
ADAPTERS_VOLUME, SECRET_VOLUME = "finetune-adapters", "finetune-secret-"
INJECTION_ANNOTATION = f"{GROUP}/injection"
"""On the Deployment: digest of what was applied to it."""
AGENT_PATH = (*map(field_step, ("spec", "template", "spec", "initContainers")), item_step(name=AGENT_CONTAINER))


def is_injected(deployment: dict[str, Any]) -> bool:
    """Return whether we own any field of the Deployment."""
    return any(
        entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply"
        for entry in deployment["metadata"].get("managedFields") or []
    )


def is_applied(deployment: dict[str, Any], body: dict[str, Any]) -> bool:
    """Return whether the Deployment has the whole body, and no other field of ours."""
    before = (deployment["metadata"].get("annotations") or {}).get(INJECTION_ANNOTATION)
    return before == body["metadata"]["annotations"][INJECTION_ANNOTATION] and covers(deployment, body)


def covers(live: Any, desired: Any) -> bool:
    """Return whether ``live`` contains ``desired``.

    ``live`` may have more fields and items, for example defaults.
    """
    if isinstance(desired, dict):
        return isinstance(live, dict) and all(
            name in live and covers(live[name], value) for name, value in desired.items()
        )
    if isinstance(desired, list):
        return isinstance(live, list) and all(any(covers(candidate, value) for candidate in live) for value in desired)
    return bool(live == desired)


def find_container(deployment: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Find the container of this name in the Deployment's pods."""
    containers = deployment["spec"]["template"]["spec"].get("containers") or []
    return next((container for container in containers if container["name"] == name), None)


def identify(deployment: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata with which a patch reaches this Deployment, and no later one of its name."""
    meta = deployment["metadata"]
    return {"namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"]}


def find_copiers(deployment: dict[str, Any]) -> set[str]:
    """Find who else owns the agent because he wrote back a copy of the pods' template, as kubectl rollout undo does.

    Empty if another manager applies the agent on the server: he declares it himself.
    """
    others = [entry for entry in find_entries(deployment, AGENT_PATH) if entry.get("manager") != FIELD_MANAGER]
    if any(entry.get("operation") == "Apply" for entry in others):
        return set()
    return {str(entry.get("manager", "")) for entry in others}


def is_own_field(path: str) -> bool:
    """Return whether a field in a conflict, as the API server writes its path, can only be ours."""
    return any(name in path for name in (f'[name="{AGENT_CONTAINER}"]', '.volumes[name="finetune-', f".{GROUP}/"))


def find_agent(deployment: dict[str, Any]) -> dict[str, Any] | None:
    """Find the agent in the Deployment's pods."""
    containers = deployment["spec"]["template"]["spec"].get("initContainers") or []
    return next((container for container in containers if container["name"] == AGENT_CONTAINER), None)


def list_secrets(deployment: dict[str, Any]) -> frozenset[str]:
    """List the Secrets that the agent in the Deployment's pods can read."""
    volumes = deployment["spec"]["template"]["spec"].get("volumes") or []
    return frozenset(
        volume["secret"]["secretName"]
        for volume in volumes
        if volume["name"].startswith(SECRET_VOLUME) and "secret" in volume
    )


def has_agent(deployment: dict[str, Any], body: dict[str, Any]) -> bool:
    """Return whether the pods have an agent of ours and all that the engine needs for it.

    The agent may be that of another version of the operator, with other probes and volumes than ``body`` has.
    """
    template, desired = deployment["spec"]["template"], body["spec"]["template"]
    return (
        FIELD_MANAGER in find_owners(deployment, [*AGENT_PATH, field_step("image")])
        and covers(template["metadata"], desired["metadata"])
        and covers(template["spec"]["containers"], desired["spec"]["containers"])
    )


def is_observed(deployment: dict[str, Any]) -> bool:
    """Return whether the Deployment's status speaks of its present spec."""
    observed = (deployment.get("status") or {}).get("observedGeneration", 0)
    return int(observed) >= int(deployment["metadata"].get("generation", 0))


def replaces_pods(deployment: dict[str, Any]) -> bool:
    """Return whether the Deployment replaces its pods or has none, so that a change of its template costs no restart.

    False as long as its status does not speak of its present spec.
    """
    status = deployment.get("status") or {}
    replicas = int(status.get("replicas", 0))
    return is_observed(deployment) and (replicas == 0 or int(status.get("updatedReplicas", 0)) < replicas)
