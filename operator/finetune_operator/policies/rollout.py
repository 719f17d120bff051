"""Decide which pods may move to a new version now. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from finetune_api.timestamps import parse_timestamp


@dataclass(frozen=True)
class PodView:
    """One pod with regard to one adapter."""

    name: str
    proven: bool
    """Whether it serves the new version, and has proven that."""
    refused: bool
    """Whether it refused the new version, and does not try it again."""
    on_previous: bool
    """Whether it serves the version that pods serve until they get the new one."""
    available: bool
    """Whether it takes traffic."""


@dataclass(frozen=True)
class Rollout:
    """The next step of a roll-out."""

    assigned: tuple[str, ...] | None
    """Pods that are to serve the new version; None for all."""
    moving: frozenset[str]
    """Assigned pods that do not serve the new version yet, and may be out of the Service."""
    complete: bool


def measure_pause(
    pods: Sequence[PodView], pause_seconds: int, updated_before: int, progressed_at: str | None, now: datetime
) -> float:
    """Return for how many seconds no further pod may move, because a pod has just taken the version.

    Args:
        pods: All pods of the workload.
        pause_seconds: Pause after each step.
        updated_before: How many pods served the version at the pass before.
        progressed_at: When the roll-out last made progress, as the pass before found it.
        now: The time of this pass.
    """
    served = sum(pod.proven for pod in pods)
    if not served:
        return 0.0
    if served > updated_before or progressed_at is None:
        return float(pause_seconds)
    return max(0.0, pause_seconds - (now - parse_timestamp(progressed_at)).total_seconds())


def compute_budget(pods: int, max_unavailable: int) -> int:
    """Compute how many pods may be out of the Service at once: at least one of several stays."""
    return min(max_unavailable, max(1, pods - 1))


def roll_out(
    pods: Sequence[PodView],
    assigned: Sequence[str] | None,
    max_unavailable: int,
    unavailable: frozenset[str] = frozenset(),
    limit: int | None = None,
) -> Rollout:
    """Compute the next step from an older version to a new one.

    At least one of several pods stays in the Service. A pod that refuses the version counts as unavailable: as many
    refusals as pods may be unavailable stop the roll-out, and fewer do not delay other pods.

    Args:
        pods: All pods of the workload, in the order of their turns.
        assigned: Pods that earlier steps assigned; None for all. They stay assigned.
        max_unavailable: How many pods may be out of the Service at once.
        unavailable: Pods that the roll-outs of other adapters have taken out of the Service.
        limit: How many pods may be assigned at the present step of a canary; None for all.
    """
    names = {pod.name for pod in pods}
    chosen = names if assigned is None else names & set(assigned)
    chosen |= {pod.name for pod in pods if pod.proven}
    if limit is None and pods and all(pod.proven for pod in pods):
        return Rollout(None, frozenset(), complete=True)
    moving = {pod.name for pod in pods if pod.name in chosen and not pod.proven and not pod.refused}
    refused = {pod.name for pod in pods if pod.refused}
    away = moving | refused | unavailable | {pod.name for pod in pods if not pod.available}
    budget = compute_budget(len(pods), max_unavailable)
    if len(refused) < budget:
        # first the pods that are out of the Service anyway, then those that serve neither version
        for pod in sorted(pods, key=lambda pod: (pod.name not in away, pod.on_previous)):
            if limit is not None and len(chosen) >= limit:
                break
            if pod.name not in chosen and (pod.name in away or len(away) < budget):
                chosen.add(pod.name)
                moving.add(pod.name)
                away.add(pod.name)
    return Rollout(tuple(sorted(chosen)), frozenset(moving), complete=False)
