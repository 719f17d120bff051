"""Decide when a served name may move to another version, or be unloaded. Pure."""

from finetune_agent.settings import Settings
from finetune_agent.state import Drain

IDLE_CHECKS = 2
"""How many checks in a row must find no request: the engine updates its metrics once per step."""


def has_left_service(drain: Drain, now: float, settings: Settings) -> bool:
    """Return whether new requests have stopped: a probe found the pod unready, and endpoints could follow."""
    if not drain.leaves_service:
        return True
    if drain.probed_at is not None:
        return now - drain.probed_at >= settings.propagation_seconds
    return now - drain.since >= settings.probe_seconds + settings.propagation_seconds


def is_drained(drain: Drain, now: float, settings: Settings) -> bool:
    """Return whether the name may move: no request of it runs, or the longest wait is over."""
    limit = settings.drain_seconds if drain.leaves_service else settings.removal_seconds
    waited = now - drain.since >= limit
    return has_left_service(drain, now, settings) and (drain.idle_checks >= IDLE_CHECKS or waited)
