"""What the agent remembers from one step to the next: what was proven, refused, or failed. All of it is lost on a restart, and found again."""

from dataclasses import dataclass, field

from finetune_api.manifest import GoldenSamples
from finetune_api.messages import AgentState, DesiredAdapter, DesiredVersion
from finetune_api.reasons import Reason

REFUSED_AFTER = 3
"""So many unexplained refusals by the engine, or ends of it in mid-request: then the version is refused for good."""
LONGEST_BACKOFF_SECONDS = 60.0


@dataclass(frozen=True)
class Fault:
    """Why a version is not served. ``attempts`` failures so far, ``strikes`` of them unexplained; the next try is not before ``not_before``
    (monotonic seconds). It is forgotten when the version is proven.
    """

    reason: Reason
    message: str
    attempts: int = 1
    strikes: int = 0
    not_before: float = 0.0


@dataclass
class Drain:
    """A served name that is about to move, or to go: since when, and when a probe was first told that the pod is unready."""

    since: float
    leaves_service: bool
    told_at: float | None = None
    quiet_checks: int = 0


@dataclass(frozen=True)
class Standing:
    """How one adapter stands after the last step, for the report."""

    state: AgentState
    reason: Reason | None = None
    message: str = ""


@dataclass
class Memory:
    """The agent's memory. ``proven`` and ``bases_proven`` speak of one process of the engine, ``identity``, and end with it.

    ``proven`` holds (name, path) as the engine has them. Versions are known by (served name, digest): ``checked`` are those on disk.
    ``owed`` are the served names that this pod must answer to be ready: all of them (None) until it is ready, then each that was proven.
    ``good`` are the versions that were proven under the served name, the newest first. ``swapping`` names move without leaving the Service.
    """

    identity: str = ""
    proven: set[tuple[str, str]] = field(default_factory=set)
    bases_proven: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    owed: set[str] | None = None
    checked: dict[tuple[str, str], GoldenSamples] = field(default_factory=dict)
    refused: dict[tuple[str, str], Fault] = field(default_factory=dict)
    failed: dict[tuple[str, str], Fault] = field(default_factory=dict)
    draining: dict[str, Drain] = field(default_factory=dict)
    swapping: set[str] = field(default_factory=set)
    good: dict[str, list[DesiredVersion]] = field(default_factory=dict)
    started: dict[tuple[str, str], float] = field(default_factory=dict)
    load_seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    standings: dict[str, Standing] = field(default_factory=dict)

    def forget_engine(self, identity: str) -> None:
        """Another process of the engine: what the last one showed is worth nothing, and every adapter is owed again."""
        self.identity = identity
        self.proven.clear()
        self.bases_proven.clear()
        self.draining.clear()
        self.swapping.clear()
        self.owed = None


def version_of(adapter: DesiredAdapter, pod: str) -> DesiredVersion | None:
    """The version that this pod is to serve: the operator moves pods one after another."""
    return adapter.version if adapter.pods is None or pod in adapter.pods else adapter.previous


def fallbacks_of(memory: Memory, adapter: DesiredAdapter, target: DesiredVersion | None) -> list[DesiredVersion]:
    """What to serve while the target cannot be: the operator's previous version, then what this pod served last."""
    found = [adapter.previous] if adapter.previous else []
    return [version for version in [*found, *memory.good.get(adapter.served_name, [])] if version != target]


def remember_good(memory: Memory, served_name: str, version: DesiredVersion) -> None:
    """A version answers under its served name. The one before it stays on disk, for a way back."""
    others = [known for known in memory.good.get(served_name, []) if known.digest != version.digest]
    memory.good[served_name] = [version, *others[:1]]


def record_fault(
    memory: Memory, key: tuple[str, str], reason: Reason, message: str, *, permanent: bool, strike: bool, now: float
) -> None:
    """Remember that a step failed. ``permanent``: refused at once; ``strike``: refused when that has happened ``REFUSED_AFTER`` times."""
    before = memory.failed.get(key)
    attempts = (before.attempts if before else 0) + 1
    strikes = (before.strikes if before else 0) + (1 if strike else 0)
    if permanent or strikes >= REFUSED_AFTER:
        memory.refused[key] = Fault(reason, message, attempts, strikes)
        memory.failed.pop(key, None)
        return
    backoff = min(2.0 ** min(attempts, 10), LONGEST_BACKOFF_SECONDS)
    memory.failed[key] = Fault(reason, message, attempts, strikes, now + backoff)
