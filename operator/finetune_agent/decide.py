"""Decide the next action for one adapter on one pod. Pure: a situation in, one action out.

Nothing is remembered here: the same situation leads to the same action, whatever happened before.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from finetune_agent.paths import candidate_name, digest_of_path, served_name_of_path
from finetune_agent.state import Fault, is_replaced
from finetune_api.messages import AgentState, DesiredVersion
from finetune_api.reasons import Reason
from finetune_api.version_paths import version_directory
from finetune_engines.base import EngineState, EngineVersion


class Action(StrEnum):
    """What the agent can do next for one adapter."""

    NOTHING = "nothing"
    DOWNLOAD = "download"
    PROVE_BASE = "prove base"
    LOAD_CANDIDATE = "load candidate"
    PROVE = "prove"
    PROVE_AGAIN = "prove again"
    DRAIN = "drain"
    SWAP = "swap"
    UNLOAD = "unload"


@dataclass(frozen=True)
class Situation:
    """Everything on which a decision depends. Sets and maps of digests hold those of this adapter only.

    Attributes:
        served_name: Name under which clients ask for the adapter.
        root: Directory of all adapters.
        target: Version that this pod is to serve; None: none.
        fallbacks: Older versions to serve while the target cannot be served, best first.
        engine: What the engine serves; None while it does not answer.
        on_disk: Digests on the disk that were checked.
        bases_proven: Digests whose base the engine was proven to serve.
        proven: Name and path of each proven adapter in the engine.
        refused: Digests that are never tried again.
        failed: Digests that are tried again later.
        drained: Whether the served name may move to another version, or be unloaded, now.
        engine_version: What the engine's version decides; None until it was asked.
        first_path: The path that the served name had first in this process of the engine.
        spoiled: Digests that failed a later proof in this process of the engine.
        due: Whether the version that answers under the served name is to be proven again.
        now: Monotonic seconds.
    """

    served_name: str
    root: Path
    target: DesiredVersion | None
    fallbacks: tuple[DesiredVersion, ...] = ()
    engine: EngineState | None = None
    on_disk: frozenset[str] = frozenset()
    bases_proven: frozenset[str] = frozenset()
    proven: frozenset[tuple[str, str]] = frozenset()
    refused: Mapping[str, Fault] = field(default_factory=dict)
    failed: Mapping[str, Fault] = field(default_factory=dict)
    drained: bool = False
    engine_version: EngineVersion | None = None
    first_path: str | None = None
    spoiled: frozenset[str] = frozenset()
    due: bool = False
    now: float = 0.0


@dataclass(frozen=True)
class Decision:
    """The next action, and the adapter's state for the report.

    Attributes:
        action: What to do.
        state: State of the adapter.
        version: The version that the action is about.
        name: The name in the engine that the action is about.
        path: Directory of the version.
        reason: Why the target is not served, if that is so.
        message: The same as a sentence.
    """

    action: Action
    state: AgentState
    version: DesiredVersion | None = None
    name: str | None = None
    path: str | None = None
    reason: Reason | None = None
    message: str = ""


def decide(situation: Situation) -> Decision:
    """Return the next action for an adapter."""
    if situation.engine is not None and (refusal := _refuse_taken_name(situation, situation.engine)):
        return refusal
    version = choose_version(situation)
    decision = _decide_removal(situation) if version is None else _decide_serving(situation, version)
    return _report_on_target(situation, version, _report_on_replacement(situation, decision))


def choose_version(situation: Situation) -> DesiredVersion | None:
    """Return the version to serve: the target, or the best fallback if the target cannot be served.

    The target cannot be served if it was refused, or if it fails while nothing else is served.
    """
    if situation.target is None:
        return None
    candidates = (situation.target, *situation.fallbacks)
    usable = [version for version in candidates if version.digest not in situation.refused]
    if not usable:
        return None
    best = usable[0]
    if _backoff_fault(situation, best.digest) and not serving_digest(situation):
        return next((version for version in usable if not _backoff_fault(situation, version.digest)), best)
    return best


def serving_digest(situation: Situation) -> str | None:
    """Return the digest that answers under the served name and is proven, if any."""
    path = situation.engine.adapters.get(situation.served_name) if situation.engine else None
    if path is None or (situation.served_name, path) not in situation.proven:
        return None
    return digest_of_path(situation.root, path)


def _backoff_fault(situation: Situation, digest: str) -> Fault | None:
    """Return the last failure of a version, if it is too early for another attempt."""
    fault = situation.failed.get(digest)
    return fault if fault and situation.now < fault.not_before else None


def _refuse_taken_name(situation: Situation, engine: EngineState) -> Decision | None:
    """Refuse a served name that is the base's, or an adapter's that the engine was started with."""
    name = situation.served_name
    path = engine.adapters.get(name)
    if name in engine.bases:
        message = f"the engine's base model is itself served as {name!r}: choose another servedName"
    elif path is None or is_replaced(situation.proven, situation.root, name, path):
        return None
    elif digest_of_path(situation.root, path) is None:
        message = (
            f"the engine already serves an adapter {name!r} from {path}, not loaded by the agent: "
            "choose another servedName, or remove that adapter"
        )
    else:
        return None
    return Decision(Action.NOTHING, "Refused", reason=Reason.SERVED_NAME_TAKEN, message=message)


def _decide_removal(situation: Situation) -> Decision:
    """Decide the next action where no version is to be served under the name."""
    if situation.engine is None:
        return Decision(Action.NOTHING, "Pending")
    if fault := situation.refused.get("") or _backoff_fault(situation, ""):  # an unload has no version
        return Decision(Action.NOTHING, "Pending", reason=fault.reason, message=fault.message)
    if unneeded := _find_unneeded_candidate(situation, situation.engine, keep=None):
        return Decision(Action.UNLOAD, "Pending", name=unneeded)
    if situation.served_name in situation.engine.adapters:
        action = Action.UNLOAD if situation.drained or not serving_digest(situation) else Action.DRAIN
        return Decision(action, "Draining", name=situation.served_name)
    message = "" if situation.target else "no version is to be served on this pod yet"
    return Decision(Action.NOTHING, "Pending", message=message)


def _decide_serving(situation: Situation, version: DesiredVersion) -> Decision:
    """Decide the next action towards serving a version: download, then load, then swap."""
    path = str(version_directory(situation.root, situation.served_name, version.digest))
    if fault := _backoff_fault(situation, version.digest):
        return Decision(Action.NOTHING, "Failed", version, reason=fault.reason, message=fault.message)
    if version.digest not in situation.on_disk:
        return Decision(Action.DOWNLOAD, "Downloading", version, path=path)
    engine = situation.engine
    if engine is None:
        return Decision(
            Action.NOTHING,
            "Pending",
            version,
            reason=Reason.ENGINE_UNREACHABLE,
            message="the engine does not answer yet",
        )
    loaded_path = engine.adapters.get(situation.served_name)
    if loaded_path == path:
        return _decide_loaded(situation, engine, version, path)
    unproven = loaded_path if (situation.served_name, loaded_path) not in situation.proven else None
    # The engine kept an older version while the agent restarted. Once it is proven, it may stay.
    if unproven and (old := _find_provable_version(situation, unproven)):
        return _decide_proof(situation, engine, old, situation.served_name, unproven)
    return _decide_candidate(situation, engine, version, path)


def _decide_loaded(situation: Situation, engine: EngineState, version: DesiredVersion, path: str) -> Decision:
    """Decide the next action where the version has the served name: prove it, then unload its candidate."""
    if (situation.served_name, path) not in situation.proven:
        if version.digest in situation.spoiled:
            return Decision(Action.UNLOAD, "Loading", version, name=situation.served_name)
        return _decide_proof(situation, engine, version, situation.served_name, path)
    if unneeded := _find_unneeded_candidate(situation, engine, keep=None):
        return Decision(Action.UNLOAD, "Active", version, name=unneeded)
    if situation.due:
        return Decision(Action.PROVE_AGAIN, "Active", version, name=situation.served_name, path=path)
    return Decision(Action.NOTHING, "Active", version)


def _decide_candidate(situation: Situation, engine: EngineState, version: DesiredVersion, path: str) -> Decision:
    """Decide the next action before the served name has the version: load, prove, then swap a candidate."""
    candidate = candidate_name(situation.served_name, version.digest)
    if unneeded := _find_unneeded_candidate(situation, engine, keep=candidate):
        return Decision(Action.UNLOAD, "Loading", version, name=unneeded)
    running = situation.engine_version
    if running is not None and running.name_keeps_cache and situation.first_path not in (None, path):
        return _decide_until_restart(situation, engine, version, running)
    candidate_path = engine.adapters.get(candidate)
    if candidate_path is None:
        if version.digest not in situation.bases_proven:
            return _decide_proof_of_base(engine, version, path)
        if _would_disturb(situation, engine):
            return Decision(Action.DRAIN, "Draining", version, name=situation.served_name)
        return Decision(Action.LOAD_CANDIDATE, "Loading", version, name=candidate, path=path)
    if candidate_path != path:
        return Decision(Action.UNLOAD, "Loading", version, name=candidate)
    if (candidate, path) not in situation.proven:
        return _decide_proof(situation, engine, version, candidate, path)
    if (serving_digest(situation) and not situation.drained) or _would_disturb(situation, engine):
        return Decision(Action.DRAIN, "Draining", version, name=situation.served_name)
    return Decision(Action.SWAP, "Loading", version, name=situation.served_name, path=path)


def _decide_until_restart(
    situation: Situation, engine: EngineState, version: DesiredVersion, running: EngineVersion
) -> Decision:
    """Keep a proven adapter until the engine restarts, because its name cannot move to another version."""
    action = Action.NOTHING
    if situation.served_name in engine.adapters and not serving_digest(situation):
        action = Action.UNLOAD
    return Decision(
        action,
        "Refused",
        version,
        name=situation.served_name,
        reason=Reason.RESTART_REQUIRED,
        message=f"the engine (version {running.version or 'unknown'}) keeps its prefix cache by the adapter's name, "
        f"and {situation.served_name!r} has served another adapter: it would answer from that one's cache. "
        "Restart the pods (kubectl rollout restart, if a Deployment or StatefulSet has them), or use a newer engine",
    )


def _would_disturb(situation: Situation, engine: EngineState) -> bool:
    """Return whether a load now may disturb requests of other adapters."""
    names = (served_name_of_path(situation.root, path) for path in engine.adapters.values())
    serves_others = any(name != situation.served_name for name in names)
    served = serves_others or serving_digest(situation) is not None
    running = situation.engine_version
    return running is not None and running.load_disturbs_requests and served and not situation.drained


def _decide_proof(situation: Situation, engine: EngineState, version: DesiredVersion, name: str, path: str) -> Decision:
    """Prove an adapter; its base first, because the proof compares the two."""
    if version.digest not in situation.bases_proven:
        return _decide_proof_of_base(engine, version, path)
    return Decision(Action.PROVE, "Proving", version, name=name, path=path)


def _decide_proof_of_base(engine: EngineState, version: DesiredVersion, path: str) -> Decision:
    base = engine.bases[0] if engine.bases else None
    return Decision(Action.PROVE_BASE, "Proving", version, name=base, path=path)


def _find_provable_version(situation: Situation, path: str) -> DesiredVersion | None:
    """Return the version at a path, if it is on the disk, was not refused, and has not just failed."""
    digest = digest_of_path(situation.root, path)
    if digest is None or digest not in situation.on_disk:
        return None
    if digest in situation.refused or _backoff_fault(situation, digest):
        return None
    fallbacks = (version for version in situation.fallbacks if version.digest == digest)
    return next(fallbacks, DesiredVersion(uri="", digest=digest))


def _find_unneeded_candidate(situation: Situation, engine: EngineState, keep: str | None) -> str | None:
    """Return the name of a candidate of this adapter in the engine that is not needed, if there is one."""
    for name, path in sorted(engine.adapters.items()):
        is_own = served_name_of_path(situation.root, path) == situation.served_name
        if is_own and name not in (situation.served_name, keep):
            return name
    return None


def _report_on_replacement(situation: Situation, decision: Decision) -> Decision:
    """Report that somebody else's adapter has the served name, until ours has it again."""
    path = situation.engine.adapters.get(situation.served_name) if situation.engine else None
    if decision.reason is not None or not is_replaced(situation.proven, situation.root, situation.served_name, path):
        return decision
    message = f"somebody loaded {path} under the served name: the pod takes no traffic until ours is proven there again"
    return replace(decision, reason=Reason.ADAPTER_REPLACED, message=message)


def _report_on_target(situation: Situation, version: DesiredVersion | None, decision: Decision) -> Decision:
    """Report why the target is not served, if a fallback is served in its place."""
    target = situation.target
    if target is None or (version is not None and version.digest == target.digest):
        return decision
    state: AgentState = "Refused" if target.digest in situation.refused else "Failed"
    fault = situation.refused.get(target.digest) or situation.failed.get(target.digest)
    if fault is None:
        return decision
    return replace(decision, state=state, reason=fault.reason, message=fault.message)
