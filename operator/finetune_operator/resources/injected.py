"""Read which fields of ours an inference workload has. Pure."""

from typing import Any

from finetune_api import GROUP
from finetune_api.version_paths import VARIABLE_PREFIX
from finetune_operator.kube.kinds import FIELD_MANAGER
from finetune_operator.kube.ownership import field_step, find_entries, find_owners, item_step

AGENT_CONTAINER = "finetune-agent"
ADAPTERS_VOLUME, SECRET_VOLUME = "finetune-adapters", "finetune-secret-"
INJECTION_ANNOTATION = f"{GROUP}/injection"
"""Annotation of the workload: digest of what was applied to it."""
VERSIONS_ANNOTATION = f"{GROUP}/versions"
"""Annotation of the pod template with the strategy Rolling: the desired state that its pods read."""
VERSIONS_VOLUME = "finetune-versions"
FETCH_CONTAINER = "finetune-fetch"
AGENT_PATH = (*map(field_step, ("spec", "template", "spec", "initContainers")), item_step(name=AGENT_CONTAINER))
VERSIONS_PATH = tuple(map(field_step, ("spec", "template", "metadata", "annotations", VERSIONS_ANNOTATION)))


def is_injected(workload: dict[str, Any]) -> bool:
    """Return whether we own any field of the workload."""
    return any(
        entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply"
        for entry in workload["metadata"].get("managedFields") or []
    )


def is_applied(workload: dict[str, Any], body: dict[str, Any]) -> bool:
    """Return whether the workload has every field of the body, and no other field of ours."""
    before = (workload["metadata"].get("annotations") or {}).get(INJECTION_ANNOTATION)
    return before == body["metadata"]["annotations"][INJECTION_ANNOTATION] and covers(workload, body)


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


def find_container(workload: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Find the container of this name in the workload's pods."""
    containers = workload["spec"]["template"]["spec"].get("containers") or []
    return next((container for container in containers if container["name"] == name), None)


def identify(workload: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata with which a patch changes this workload, but no later one with the same name."""
    meta = workload["metadata"]
    return {"namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"]}


def find_copiers(workload: dict[str, Any]) -> set[str]:
    """Find the managers that own the agent because they copied the template, as kubectl rollout undo does.

    If both templates have an agent, kubectl writes only the versions that differ. Empty if another manager applies the
    agent on the server, because then it declares the agent itself.
    """
    entries = [entry for path in (AGENT_PATH, VERSIONS_PATH) for entry in find_entries(workload, path)]
    others = [entry for entry in entries if entry.get("manager") != FIELD_MANAGER]
    if any(entry.get("operation") == "Apply" for entry in others):
        return set()
    return {str(entry.get("manager", "")) for entry in others}


def is_own_field(path: str) -> bool:
    """Return whether a field, with its path as the API server writes it in a conflict, can only be ours."""
    containers = (f'[name="{AGENT_CONTAINER}"]', f'[name="{FETCH_CONTAINER}"]')
    parts = (*containers, '.volumes[name="finetune-', f'[name="{VARIABLE_PREFIX}', f".{GROUP}/")
    return any(part in path for part in parts)


def is_rolling(workload: dict[str, Any]) -> bool:
    """Return whether the pods read their versions from their template, as with the strategy Rolling."""
    return VERSIONS_ANNOTATION in (workload["spec"]["template"].get("metadata", {}).get("annotations") or {})


def find_agent(workload: dict[str, Any]) -> dict[str, Any] | None:
    """Find the agent in the workload's pods."""
    containers = workload["spec"]["template"]["spec"].get("initContainers") or []
    return next((container for container in containers if container["name"] == AGENT_CONTAINER), None)


def list_secrets(workload: dict[str, Any]) -> frozenset[str]:
    """List the Secrets that the agent in the workload's pods can read."""
    volumes = workload["spec"]["template"]["spec"].get("volumes") or []
    return frozenset(
        volume["secret"]["secretName"]
        for volume in volumes
        if volume["name"].startswith(SECRET_VOLUME) and "secret" in volume
    )


def has_agent(workload: dict[str, Any], body: dict[str, Any]) -> bool:
    """Return whether the pods have an agent of ours, and the mounts and variables that its engine needs.

    The agent may come from another version of the operator, with other probes and volumes than ``body`` has.
    """
    template, desired = workload["spec"]["template"], body["spec"]["template"]
    return (
        FIELD_MANAGER in find_owners(workload, [*AGENT_PATH, field_step("image")])
        and covers(template["metadata"], desired["metadata"])
        and covers(template["spec"]["containers"], desired["spec"]["containers"])
    )
