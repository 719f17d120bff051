"""Decide whether the pod may take traffic. Pure: desired state, engine and memory in, readiness out."""

from dataclasses import dataclass
from pathlib import Path

from finetune_agent.paths import digest_of_path
from finetune_agent.state import AdapterState, Memory, is_replaced, list_fallbacks, version_for_pod
from finetune_api.messages import DesiredAdapter, DesiredState
from finetune_api.version_paths import names_version
from finetune_engines.base import EngineState

GIVE_WAY_AFTER = 5
"""Number of failures in a row after which an adapter no longer keeps the pod's other adapters from traffic."""


@dataclass(frozen=True)
class Readiness:
    """Whether the pod may take traffic, and a sentence that says why not."""

    ready: bool
    message: str


def proven_digest(memory: Memory, engine_state: EngineState, root: Path, served_name: str) -> str | None:
    """Return the digest that answers under a served name, if this process of the engine has proven it."""
    path = engine_state.adapters.get(served_name)
    return digest_of_path(root, path) if path is not None and (served_name, path) in memory.proven else None


def judge_readiness(
    desired: DesiredState | None, pod: str, engine_state: EngineState | None, memory: Memory, root: Path
) -> Readiness:
    """Return whether each required adapter is proven, and no other adapter answers under a served name.

    An adapter is not required if all its versions were refused, or if it came after the pod took traffic and was never
    proven. An adapter that fails again and again gives way as soon as another one is proven.

    Where the pod's template carries the versions, every adapter is required: else a roll-out would replace pods that
    serve by pods that do not.

    Args:
        desired: The desired state; None if it was not read yet.
        pod: Name of this pod.
        engine_state: What the engine serves; None if it does not answer.
        memory: The agent's memory.
        root: Directory of all adapters.
    """
    if desired is None:
        return Readiness(False, "the desired state has not been read yet")
    if engine_state is None:
        return Readiness(False, "the engine does not answer")
    if leaving := sorted(name for name, drain in memory.draining.items() if drain.leaves_service):
        return Readiness(False, f"draining: {', '.join(leaving)}")
    missing: list[str] = []
    failing: list[str] = []
    proven = 0
    for adapter in desired.adapters:
        name = adapter.served_name
        if proven_digest(memory, engine_state, root, name) or name in memory.swapping:
            proven += 1
        elif desired.rolling:
            missing.append(name)
        elif _belongs_to_another(memory, engine_state, root, name):
            continue
        elif name in engine_state.adapters:
            missing.append(name)
        elif _is_required(memory, adapter, pod):
            gives_way = _fails_repeatedly(memory, adapter, pod) and not names_version(name)
            (failing if gives_way else missing).append(name)
    if missing or (failing and not proven):
        return Readiness(False, f"not proven on this run of the engine: {', '.join(missing + failing)}")
    return Readiness(True, "ready")


def find_unfetched(desired: DesiredState | None, pod: str, memory: Memory) -> str:
    """Return which versions are not on the disk and checked yet, and why; empty if all are there."""
    if desired is None:
        return "the desired state has not been read yet"
    parts = []
    for adapter in desired.adapters:
        name, version = adapter.served_name, version_for_pod(adapter, pod)
        if version is not None and (name, version.digest) not in memory.samples:
            state = memory.adapter_states.get(name, AdapterState("Pending"))
            parts.append(f"{name}: {state.state}" + (f": {state.message}" if state.message else ""))
    return "; ".join(parts)


def _belongs_to_another(memory: Memory, engine_state: EngineState, root: Path, served_name: str) -> bool:
    """Return whether the base, or an adapter with which the engine was started, has the name. Ours is refused then."""
    path = engine_state.adapters.get(served_name)
    if is_replaced(memory.proven, root, served_name, path):
        return False
    return served_name in engine_state.bases or (path is not None and digest_of_path(root, path) is None)


def _is_required(memory: Memory, adapter: DesiredAdapter, pod: str) -> bool:
    name, target = adapter.served_name, version_for_pod(adapter, pod)
    if target is None or (memory.required is not None and name not in memory.required):
        return False
    if names_version(name):  # requests come to each of the versions that a gateway chooses from
        return True
    if (name, target.digest) in memory.spoiled:  # this process of the engine served it, and cannot any more
        return True
    versions = [target, *list_fallbacks(memory, adapter, target)]
    return not all((name, version.digest) in memory.refused for version in versions)


def _fails_repeatedly(memory: Memory, adapter: DesiredAdapter, pod: str) -> bool:
    target = version_for_pod(adapter, pod)
    fault = memory.failed.get((adapter.served_name, target.digest)) if target else None
    return fault is not None and fault.attempts >= GIVE_WAY_AFTER
