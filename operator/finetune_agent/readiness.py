"""Whether the pod may take traffic. Pure: what is wanted, what the engine has now, and what was proven on this run of it."""

from dataclasses import dataclass
from pathlib import Path

from finetune_agent.engines.base import EngineView
from finetune_agent.paths import digest_of_path
from finetune_agent.state import Memory, fallbacks_of, version_of
from finetune_api.messages import DesiredState

GIVE_WAY_AFTER = 5
"""An adapter that has failed so often in a row keeps the pod's other adapters from traffic no longer."""


@dataclass(frozen=True)
class Readiness:
    """``ready``, and the sentence for the one who asks why not."""

    ready: bool
    message: str


def proven_digest(memory: Memory, engine: EngineView, root: Path, served_name: str) -> str | None:
    """The digest that answers under a served name and was proven on this run of the engine, if any."""
    path = engine.adapters.get(served_name)
    return digest_of_path(root, path) if path is not None and (served_name, path) in memory.proven else None


def readiness(
    desired: DesiredState | None, pod: str, engine: EngineView | None, memory: Memory, root: Path
) -> Readiness:
    """Whether each adapter that this pod owes its clients is there and proven, and none is there that is not.

    An adapter that was refused, with no older version left, is not owed: base and other adapters go on. One that came after the pod took
    traffic is owed once it was proven: its arrival takes nothing from the others. One that keeps failing gives way if another is proven.
    """
    if desired is None:
        return Readiness(False, "the desired state has not been read yet")
    if engine is None:
        return Readiness(False, "the engine does not answer")
    if leaving := sorted(name for name, drain in memory.draining.items() if drain.leaves_service):
        return Readiness(False, f"draining: {', '.join(leaving)}")
    missing: list[str] = []
    lasting: list[str] = []
    others = 0
    for adapter in desired.adapters:
        name = adapter.served_name
        if proven_digest(memory, engine, root, name) or name in memory.swapping:
            others += 1
            continue
        if _taken(engine, root, name):
            continue
        if name in engine.adapters:
            missing.append(name)
            continue
        target = version_of(adapter, pod)
        if target is None or (memory.owed is not None and name not in memory.owed):
            continue
        if all(
            (name, version.digest) in memory.refused for version in [target, *fallbacks_of(memory, adapter, target)]
        ):
            continue
        fault = memory.failed.get((name, target.digest))
        (lasting if fault and fault.attempts >= GIVE_WAY_AFTER else missing).append(name)
    if missing or (lasting and not others):
        return Readiness(False, f"not proven on this run of the engine: {', '.join(missing + lasting)}")
    return Readiness(True, "ready")


def _taken(engine: EngineView, root: Path, served_name: str) -> bool:
    """The name belongs to the base or to an adapter that the engine was started with: ours is refused."""
    path = engine.adapters.get(served_name)
    return served_name in engine.bases or (path is not None and digest_of_path(root, path) is None)
