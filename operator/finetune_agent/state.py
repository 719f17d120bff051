"""Define the agent's memory between two ticks. After a restart the next ticks fill it again."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from finetune_agent.paths import digest_of_path
from finetune_api.manifest import GoldenSamples
from finetune_api.messages import AgentState, DesiredAdapter, DesiredVersion
from finetune_api.reasons import Reason
from finetune_engines.base import EngineVersion

MAX_STRIKES = 3
"""Number of unexplained errors of the engine, or ends during a request, after which a version is refused for good."""
MAX_BACKOFF_SECONDS = 60.0

VersionKey = tuple[str, str]
"""Served name and digest of a version."""


@dataclass(frozen=True)
class Fault:
    """Why a version is not served. It is forgotten when the version is proven.

    Attributes:
        reason: Reason for the report.
        message: What is wrong, and what to do.
        attempts: How often it failed in a row.
        strikes: How many of these failures were unexplained.
        not_before: Earliest time of the next attempt, in monotonic seconds.
    """

    reason: Reason
    message: str
    attempts: int = 1
    strikes: int = 0
    not_before: float = 0.0


@dataclass
class Drain:
    """A served name that is about to move to another version, or to be unloaded.

    Attributes:
        since: When the drain began, in monotonic seconds.
        leaves_service: The pod leaves its Service while it drains.
        probed_at: When a probe first found the pod unready.
        of_all_adapters: Wait for the requests of every adapter, because a load may disturb them.
        idle_checks: How many checks in a row found no request.
    """

    since: float
    leaves_service: bool
    probed_at: float | None = None
    of_all_adapters: bool = False
    idle_checks: int = 0


@dataclass(frozen=True)
class AdapterState:
    """The state of one adapter after the last tick, for the report."""

    state: AgentState
    reason: Reason | None = None
    message: str = ""


@dataclass
class Memory:
    """The agent's memory.

    Attributes:
        identity: The engine's process to which ``proven``, ``base_logprobs`` and ``first_paths`` apply.
        engine_version: What the version of this process decides; None until it was asked.
        must_restart: Why this process must be restarted; empty if it need not.
        first_paths: The only path that each name had in this process; empty if it had several.
        replaced: How often somebody else put an adapter under a served name of ours.
        proven: Name and path of each adapter that was proven in the engine.
        proofs: What the proof of each of them found, for the report.
        proven_at: When each of them was proven last, in monotonic seconds.
        proof_seconds: How long the last proof of each of them took.
        spoiled: Versions that this process served and proved, and that failed a later proof: they are loaded again.
        failed_reproofs: How often that happened to each served name.
        base_logprobs: What the engine's base answered to the questions about a version, if that is proven.
        required: Served names that the pod must answer to be ready; None, until it was ready once, means all of them.
        samples: Golden samples of each version on the disk that was checked.
        refused: Versions that are never tried again.
        failed: Versions that are tried again later.
        draining: Served names that drain.
        swapping: Served names that move to another version without leaving the Service.
        good_versions: Versions that were proven under each served name, the newest first.
        started_at: When work on a version began, in monotonic seconds.
        load_seconds: Time from there until the version was proven.
        adapter_states: State of each served name, for the report.
    """

    identity: str = ""
    engine_version: EngineVersion | None = None
    must_restart: str = ""
    first_paths: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, int] = field(default_factory=dict)
    proven: set[tuple[str, str]] = field(default_factory=set)
    proofs: dict[tuple[str, str], str] = field(default_factory=dict)
    proven_at: dict[tuple[str, str], float] = field(default_factory=dict)
    proof_seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    spoiled: set[VersionKey] = field(default_factory=set)
    failed_reproofs: dict[str, int] = field(default_factory=dict)
    base_logprobs: dict[VersionKey, list[float]] = field(default_factory=dict)
    required: set[str] | None = None
    samples: dict[VersionKey, GoldenSamples] = field(default_factory=dict)
    refused: dict[VersionKey, Fault] = field(default_factory=dict)
    failed: dict[VersionKey, Fault] = field(default_factory=dict)
    draining: dict[str, Drain] = field(default_factory=dict)
    swapping: set[str] = field(default_factory=set)
    good_versions: dict[str, list[DesiredVersion]] = field(default_factory=dict)
    started_at: dict[VersionKey, float] = field(default_factory=dict)
    load_seconds: dict[VersionKey, float] = field(default_factory=dict)
    adapter_states: dict[str, AdapterState] = field(default_factory=dict)

    def start_engine_process(self, identity: str, version: EngineVersion | None) -> None:
        """Forget what was proven in another process of the engine, and require every adapter again."""
        self.identity, self.engine_version, self.must_restart = identity, version, ""
        self.first_paths.clear()
        self.proven.clear()
        self.proofs.clear()
        self.proven_at.clear()
        self.proof_seconds.clear()
        self.base_logprobs.clear()
        for key in self.spoiled:  # the process had failed, and not the version
            self.refused.pop(key, None)
        self.spoiled.clear()
        self.draining.clear()
        self.swapping.clear()
        self.required = None

    def remember_proof(self, name: str, path: str, message: str, began: float, now: float) -> None:
        """Remember a proof: that ``path`` answers under ``name``, what was found, and how long it took."""
        self.proven.add((name, path))
        self.proofs[name, path] = message
        self.proven_at[name, path] = now
        self.proof_seconds[name, path] = now - began

    def spoil(self, key: VersionKey, path: str) -> None:
        """Forget the proofs of a version that no longer answers as it was proven, and of its base."""
        name = key[0]
        self.proven = {(other, proven_path) for other, proven_path in self.proven if proven_path != path}
        self.base_logprobs.pop(key, None)
        self.spoiled.add(key)
        self.failed_reproofs[name] = self.failed_reproofs.get(name, 0) + 1


def is_replaced(proven: Collection[tuple[str, str]], root: Path, served_name: str, path: str | None) -> bool:
    """Return whether somebody else's adapter is under a served name that was proven to be ours.

    Args:
        proven: Name and path of each adapter that was proven in this process of the engine.
        root: Directory of all adapters.
        served_name: The served name.
        path: Path of the adapter that has the name now; None: none.
    """
    foreign = path is not None and digest_of_path(root, path) is None
    return foreign and any(name == served_name for name, _ in proven)


def version_for_pod(adapter: DesiredAdapter, pod: str) -> DesiredVersion | None:
    """Return the version that this pod is to serve: the operator moves the pods one after another."""
    return adapter.version if adapter.pods is None or pod in adapter.pods else adapter.previous


def list_fallbacks(memory: Memory, adapter: DesiredAdapter, target: DesiredVersion | None) -> list[DesiredVersion]:
    """Return the versions to serve while the target cannot be served, best first.

    The first is the operator's previous version; then come those that this pod served last.
    """
    previous = [adapter.previous] if adapter.previous else []
    good_versions = memory.good_versions.get(adapter.served_name, [])
    return [version for version in [*previous, *good_versions] if version != target]


def remember_good_version(memory: Memory, served_name: str, version: DesiredVersion) -> None:
    """Remember that a version answers under its served name. The one before it stays on disk, for a rollback."""
    older_versions = [older for older in memory.good_versions.get(served_name, []) if older.digest != version.digest]
    memory.good_versions[served_name] = [version, *older_versions[:1]]


def record_fault(
    memory: Memory, key: VersionKey, reason: Reason, message: str, *, permanent: bool, strike: bool, now: float
) -> None:
    """Remember that an action on a version failed.

    Args:
        memory: The agent's memory.
        key: The version.
        reason: Reason for the report.
        message: What is wrong, and what to do.
        permanent: Refuse the version at once.
        strike: The failure is unexplained: refuse the version after ``MAX_STRIKES`` of them.
        now: Monotonic seconds.
    """
    before = memory.failed.get(key)
    attempts = (before.attempts if before else 0) + 1
    strikes = (before.strikes if before else 0) + (1 if strike else 0)
    if permanent or strikes >= MAX_STRIKES:
        memory.refused[key] = Fault(reason, message, attempts, strikes)
        memory.failed.pop(key, None)
        return
    backoff = min(2.0 ** min(attempts, 10), MAX_BACKOFF_SECONDS)
    memory.failed[key] = Fault(reason, message, attempts, strikes, now + backoff)
