"""View pods that only a selector names as one workload, and find what they lack of the agent. Pure.

Their owner, a LeaderWorkerSet for example, is not the operator's to change: its user puts the agent into its template.
"""

from collections.abc import Iterable, Sequence

from finetune_api.messages import ADAPTERS_DIRECTORY, DESIRED_DIRECTORY, SECRETS_DIRECTORY, TOKEN_FILE
from finetune_api.reasons import Reason
from finetune_operator.kube.kinds import POD, ROLE_LABEL, Object
from finetune_operator.kube.workloads import WorkloadRef, refer_to
from finetune_operator.resources.injected import AGENT_CONTAINER, SECRET_VOLUME
from finetune_operator.resources.injection import AGENT_ROLE, config_map_name
from finetune_operator.resources.workloads.base import sort_by_name

GETS_AGENT = False
sort_pods = sort_by_name
GUIDE = "docs/own-agent.md"
MAX_NAMED = 3
"""Maximum number of pods that a message names."""


def view_pods(namespace: str, selector: str, pods: Sequence[Object]) -> Object | None:
    """View pods as a workload: with the spec of the newest one, and the Secrets that all agents have. None: no pods."""
    if not pods:
        return None
    newest = max(pods, key=lambda pod: (_find_agent(pod) is not None, pod["metadata"].get("creationTimestamp") or ""))
    secrets = [_list_secrets(agent) for pod in pods if (agent := _find_agent(pod)) is not None]
    volumes = [
        {"name": f"{SECRET_VOLUME}{name}", "secret": {"secretName": name}}
        for name in sorted(set.intersection(*secrets) if secrets else ())
    ]
    return {
        "kind": POD.name,
        "metadata": {"namespace": namespace, "name": selector, "generation": 0},
        "spec": {"replicas": len(pods), "template": {"spec": {**newest["spec"], "volumes": volumes}}},
        "status": {"replicas": len(pods), "updatedReplicas": len(pods)},
        "pods": list(pods),
    }


def find_missing(pod: Object, config_map: str) -> list[str]:
    """Find what the pod lacks of the agent; empty if it has all of it."""
    agent = _find_agent(pod)
    if agent is None:
        return [f"container {AGENT_CONTAINER}"]
    missing = []
    if (pod["metadata"].get("labels") or {}).get(ROLE_LABEL) != AGENT_ROLE:
        missing.append(f"label {ROLE_LABEL}: {AGENT_ROLE}")
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or []}
    desired = volumes.get(_find_mount(agent, DESIRED_DIRECTORY) or "", {})
    mounted = (desired.get("configMap") or {}).get("name")
    if mounted != config_map:
        instead = f" in place of {mounted}" if mounted else ""
        missing.append(
            f"volume of ConfigMap {config_map} at {DESIRED_DIRECTORY} in container {AGENT_CONTAINER}{instead}"
        )
    token = TOKEN_FILE.rpartition("/")[0]
    if _find_mount(agent, token) is None:
        missing.append(f"volume of the token at {token} in container {AGENT_CONTAINER}")
    adapters = _find_mount(agent, ADAPTERS_DIRECTORY)
    engines = [container for container in pod["spec"]["containers"] if container["name"] != AGENT_CONTAINER]
    if adapters is None or all(_find_mount(engine, ADAPTERS_DIRECTORY) != adapters for engine in engines):
        missing.append(f"one volume at {ADAPTERS_DIRECTORY} in container {AGENT_CONTAINER} and in the engine's")
    return missing


def owns(name: str, pod: Object) -> bool:
    """Return whether the pod has all of the agent. The API server has already chosen it by the selector."""
    return not find_missing(pod, config_map_name(WorkloadRef(POD, name).group))


def replaces_pods(workload: Object) -> bool:
    """Return False: the operator never changes what creates the pods."""
    return False


def is_up_to_date(workload: Object) -> bool:
    """Return True: the operator does not know what replaces the pods."""
    return True


def find_blocker(workload: Object, pods: Sequence[Object]) -> tuple[Reason, str] | None:
    """Find what pods lack of the agent."""
    ref = refer_to(workload)
    config_map = config_map_name(ref.group)
    lacking = {pod["metadata"]["name"]: find_missing(pod, config_map) for pod in workload["pods"]}
    incomplete = [(name, missing) for name, missing in sorted(lacking.items()) if missing]
    if not incomplete:
        return None
    first = "; ".join(f"pod {name} has no {_join(missing)}" for name, missing in incomplete[:MAX_NAMED])
    more = f"; and {len(incomplete) - MAX_NAMED} more pods" if len(incomplete) > MAX_NAMED else ""
    text = (
        f"{len(incomplete)} of {len(lacking)} pods with {ref.name} cannot serve: {first}{more}. Add it to their "
        f"template ({GUIDE}); their ConfigMap is {config_map}"
    )
    return Reason.AGENT_MISSING, text


def _join(items: Iterable[str]) -> str:
    return ", no ".join(items)


def _find_agent(pod: Object) -> Object | None:
    spec = pod["spec"]
    containers = [*(spec.get("initContainers") or []), *spec["containers"]]
    return next((container for container in containers if container["name"] == AGENT_CONTAINER), None)


def _find_mount(container: Object, path: str) -> str | None:
    """Find the volume that is mounted at a path."""
    mounts = container.get("volumeMounts") or []
    return next((mount["name"] for mount in mounts if mount["mountPath"].rstrip("/") == path), None)


def _list_secrets(agent: Object) -> set[str]:
    """List the Secrets that the agent has below the directory of Secrets."""
    paths = [mount["mountPath"].rstrip("/") for mount in agent.get("volumeMounts") or []]
    return {path.rpartition("/")[2] for path in paths if path.rpartition("/")[0] == SECRETS_DIRECTORY}
