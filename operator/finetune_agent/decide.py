"""What to do next for one adapter on one pod. Pure: what is wanted, on disk, in the engine and proven goes in, the next single action comes out.

Nothing is remembered here: whatever happened before, the same situation leads to the same action.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from finetune_agent.engines.base import EngineView
from finetune_agent.paths import candidate_name, digest_of_path, served_name_of, version_directory
from finetune_agent.state import Fault
from finetune_api.messages import AgentState, DesiredVersion
from finetune_api.reasons import Reason


class Do(StrEnum):
    """The next action."""

    NOTHING = "nothing"
    DOWNLOAD = "download"
    PROVE_BASE = "prove base"
    LOAD_CANDIDATE = "load candidate"
    PROVE = "prove"
    DRAIN = "drain"
    SWAP = "swap"
    UNLOAD = "unload"


@dataclass(frozen=True)
class Situation:
    """All that a decision depends on.

    ``target`` is the version that this pod is to serve (None: none, now), ``fallbacks`` are older ones to serve while it cannot be, best first.
    ``on_disk``, ``bases_proven``, ``refused`` and ``failed`` speak of digests of this adapter; ``proven`` of (name, path) in the engine.
    ``engine`` is None while it does not answer. ``drained``: the served name may move now.
    """

    served_name: str
    root: Path
    target: DesiredVersion | None
    fallbacks: tuple[DesiredVersion, ...] = ()
    engine: EngineView | None = None
    on_disk: frozenset[str] = frozenset()
    bases_proven: frozenset[str] = frozenset()
    proven: frozenset[tuple[str, str]] = frozenset()
    refused: Mapping[str, Fault] = field(default_factory=dict)
    failed: Mapping[str, Fault] = field(default_factory=dict)
    drained: bool = False
    now: float = 0.0


@dataclass(frozen=True)
class Decision:
    """The next action: on which version, and on which name in the engine; and how the adapter stands, for the report."""

    do: Do
    state: AgentState
    version: DesiredVersion | None = None
    name: str | None = None
    path: str | None = None
    reason: Reason | None = None
    message: str = ""


def decide(s: Situation) -> Decision:
    """The next action for an adapter."""
    if s.engine is not None and (foreign := _foreign(s, s.engine)):
        return foreign
    goal = choose(s)
    decision = _remove(s) if goal is None else _serve(s, goal)
    return _as_of_target(s, goal, decision)


def choose(s: Situation) -> DesiredVersion | None:
    """The version to serve: the target, unless it was refused, or fails while nothing else is served; then the best fallback."""
    if s.target is None:
        return None
    usable = [version for version in (s.target, *s.fallbacks) if version.digest not in s.refused]
    if not usable:
        return None
    first = usable[0]
    if _waits(s, first.digest) and not serving(s):
        return next((version for version in usable if not _waits(s, version.digest)), first)
    return first


def _waits(s: Situation, digest: str) -> Fault | None:
    """The failure of a version whose time for another try has not come."""
    fault = s.failed.get(digest)
    return fault if fault and s.now < fault.not_before else None


def serving(s: Situation) -> str | None:
    """The digest that answers under the served name and is proven, if any."""
    path = s.engine.adapters.get(s.served_name) if s.engine else None
    return digest_of_path(s.root, path) if path is not None and (s.served_name, path) in s.proven else None


def _foreign(s: Situation, engine: EngineView) -> Decision | None:
    """The served name belongs to someone else: the base, or an adapter that the engine was started with."""
    path = engine.adapters.get(s.served_name)
    if s.served_name in engine.bases:
        message = f"the engine's base model is itself served as {s.served_name!r}: choose another servedName"
    elif path is not None and digest_of_path(s.root, path) is None:
        message = f"the engine already serves an adapter {s.served_name!r} from {path}, not loaded by the agent: choose another servedName, or take it out"
    else:
        return None
    return Decision(Do.NOTHING, "Refused", reason=Reason.SERVED_NAME_TAKEN, message=message)


def _remove(s: Situation) -> Decision:
    """Nothing is to be served under the name."""
    if s.engine is None:
        return Decision(Do.NOTHING, "Pending")
    if leftover := _leftover(s, s.engine, keep=None):
        return Decision(Do.UNLOAD, "Pending", name=leftover)
    if s.served_name in s.engine.adapters:
        return Decision(Do.UNLOAD if s.drained or not serving(s) else Do.DRAIN, "Draining", name=s.served_name)
    return Decision(Do.NOTHING, "Pending", message="" if s.target else "no version is to be served on this pod yet")


def _serve(s: Situation, goal: DesiredVersion) -> Decision:
    digest = goal.digest
    path = str(version_directory(s.root, s.served_name, digest))
    candidate = candidate_name(s.served_name, digest)
    if fault := _waits(s, digest):
        return Decision(Do.NOTHING, "Failed", goal, reason=fault.reason, message=fault.message)
    if digest not in s.on_disk:
        return Decision(Do.DOWNLOAD, "Downloading", goal, path=path)
    if s.engine is None:
        return Decision(
            Do.NOTHING, "Pending", goal, reason=Reason.ENGINE_UNREACHABLE, message="the engine does not answer yet"
        )
    loaded = s.engine.adapters.get(s.served_name)
    if loaded == path:
        if (s.served_name, path) not in s.proven:
            return _prove(s, goal, s.served_name, path)
        if leftover := _leftover(s, s.engine, keep=None):
            return Decision(Do.UNLOAD, "Active", goal, name=leftover)
        return Decision(Do.NOTHING, "Active", goal)
    if loaded is not None and (s.served_name, loaded) not in s.proven and (old := _known(s, loaded)):
        # the engine kept an older version over a restart of the agent: it may go on serving as soon as it is proven again
        return _prove(s, old, s.served_name, loaded)
    if leftover := _leftover(s, s.engine, keep=candidate):
        return Decision(Do.UNLOAD, "Loading", goal, name=leftover)
    beside = s.engine.adapters.get(candidate)
    if beside is None:
        if digest not in s.bases_proven:
            return Decision(
                Do.PROVE_BASE, "Proving", goal, name=s.engine.bases[0] if s.engine.bases else None, path=path
            )
        return Decision(Do.LOAD_CANDIDATE, "Loading", goal, name=candidate, path=path)
    if beside != path:
        return Decision(Do.UNLOAD, "Loading", goal, name=candidate)
    if (candidate, path) not in s.proven:
        return _prove(s, goal, candidate, path)
    if serving(s) and not s.drained:
        return Decision(Do.DRAIN, "Draining", goal, name=s.served_name)
    return Decision(Do.SWAP, "Loading", goal, name=s.served_name, path=path)


def _prove(s: Situation, version: DesiredVersion, name: str, path: str) -> Decision:
    """An adapter is compared with the engine's own base, so that is measured first."""
    assert s.engine is not None  # noqa: S101 -- for the type checker
    if version.digest not in s.bases_proven:
        return Decision(
            Do.PROVE_BASE, "Proving", version, name=s.engine.bases[0] if s.engine.bases else None, path=path
        )
    return Decision(Do.PROVE, "Proving", version, name=name, path=path)


def _known(s: Situation, path: str) -> DesiredVersion | None:
    """The version that lies at a path, if it can be proven: its files are there, and it was not refused and does not fail now."""
    digest = digest_of_path(s.root, path)
    if digest is None or digest not in s.on_disk or digest in s.refused or _waits(s, digest):
        return None
    return next((version for version in s.fallbacks if version.digest == digest), DesiredVersion(uri="", digest=digest))


def _leftover(s: Situation, engine: EngineView, keep: str | None) -> str | None:
    """A candidate of ours that is not needed (any more)."""
    return next(
        (
            name
            for name in sorted(engine.adapters)
            if name not in (s.served_name, keep) and served_name_of(name) == s.served_name
        ),
        None,
    )


def _as_of_target(s: Situation, goal: DesiredVersion | None, decision: Decision) -> Decision:
    """The report speaks of the target, also while a fallback takes its place."""
    if s.target is None or (goal is not None and goal.digest == s.target.digest):
        return decision
    state: AgentState = "Refused" if s.target.digest in s.refused else "Failed"
    fault = s.refused.get(s.target.digest) or s.failed.get(s.target.digest)
    if fault is None:
        return decision
    return Decision(decision.do, state, decision.version, decision.name, decision.path, fault.reason, fault.message)
