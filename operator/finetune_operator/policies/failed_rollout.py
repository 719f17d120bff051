"""Decide whether the roll-out of a version has failed. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from finetune_api.messages import AgentAdapter
from finetune_api.reasons import Reason
from finetune_api.timestamps import format_timestamp, parse_timestamp

NOT_CAUSED_BY_VERSION = frozenset({Reason.RESTART_REQUIRED, Reason.SERVED_NAME_TAKEN, Reason.LORA_DISABLED})
"""Reasons for which a pod would refuse another version as well."""


@dataclass(frozen=True)
class Failure:
    """Why no further pod takes the version. ``is_caused_by_version``: an older version may succeed."""

    reason: str
    message: str
    is_caused_by_version: bool


@dataclass(frozen=True)
class Progress:
    """How far the roll-out of a version is; the deadline for progress starts again when it changes."""

    digest: str
    generation: int
    updated: int
    ready: int
    total: int


def find_refusal(pods: Mapping[str, AgentAdapter], digest: str, budget: int) -> Failure | None:
    """Return why the roll-out of a version fails, if enough pods refuse it; None if it may continue.

    Args:
        pods: What each pod's agent reported.
        digest: Digest of the version.
        budget: Number of refusals that stops the roll-out. Fewer stop it only if all other pods serve the version.
    """
    refused = [(name, pod) for name, pod in sorted(pods.items()) if pod.state == "Refused" and pod.digest == digest]
    served = sum(pod.active_digest == digest and pod.state == "Active" for pod in pods.values())
    if not refused or (len(refused) < budget and served + len(refused) < len(pods)):
        return None
    refused_for_version = [item for item in refused if item[1].reason not in NOT_CAUSED_BY_VERSION]
    name, pod = (refused_for_version or refused)[0]
    others = f"; {len(refused)} pods refuse it" if len(refused) > 1 else ""
    served_by = f"; {served} pods serve it" if served else ""
    text = f"pod {name}: {pod.message}{others}{served_by}"
    return Failure(pod.reason or Reason.ENGINE_REFUSED, text, is_caused_by_version=len(refused_for_version) >= budget)


def find_progress_time(before: Progress | None, after: Progress, progressed_at: str | None, now: datetime) -> str:
    """Find when the roll-out last made progress: a pod took the version, or became ready.

    The time starts again with another version, an edit of the spec, or another number of pods.

    Args:
        before: The progress at the pass before.
        after: The progress now.
        progressed_at: The time that the pass before found; None if no roll-out was going on.
        now: The time of this pass.
    """
    if before is None or progressed_at is None:
        return format_timestamp(now)
    is_same = (before.digest, before.generation, before.total) == (after.digest, after.generation, after.total)
    has_progress = after.updated > before.updated or after.ready > before.ready
    return progressed_at if is_same and not has_progress else format_timestamp(now)


def measure_remaining_seconds(progressed_at: str, limit: int, watched_seconds: float, now: datetime) -> float:
    """Return the seconds that remain until the next progress is due; 0 or less: the deadline is exceeded.

    Time before this process of the operator led does not count, because agents could not report to it then.
    """
    waited = (now - parse_timestamp(progressed_at)).total_seconds()
    return limit - min(waited, watched_seconds)
