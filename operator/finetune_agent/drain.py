"""When a served name may move, or go. Pure."""

from finetune_agent.settings import Settings
from finetune_agent.state import Drain

QUIET_CHECKS = 2
"""So many looks in a row must find no request: the engine writes its numbers once per step."""


def out_of_service(drain: Drain, now: float, settings: Settings) -> bool:
    """Whether new requests have had time to stop: a probe saw the pod unready, and the endpoints have had time to follow."""
    if not drain.leaves_service:
        return True
    if drain.told_at is not None:
        return now - drain.told_at >= settings.propagation_seconds
    return now - drain.since >= settings.probe_seconds + settings.propagation_seconds


def drained(drain: Drain, now: float, settings: Settings) -> bool:
    """Whether the name may move now: no request of it runs, or it was waited for long enough."""
    limit = settings.drain_seconds if drain.leaves_service else settings.removal_seconds
    return out_of_service(drain, now, settings) and (drain.quiet_checks >= QUIET_CHECKS or now - drain.since >= limit)
