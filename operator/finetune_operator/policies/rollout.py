"""Which pods may move to a new version now. Pure: the pods as last reported go in, the pods that are told to serve the new version come out."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PodView:
    """One pod as far as one adapter is concerned.

    ``done``: the new version is proven and answers; ``refused``: this pod refused the new version for good;
    ``on_previous``: it answers with the version that unmoved pods are to serve. ``available``: it takes traffic.
    """

    name: str
    done: bool
    refused: bool
    on_previous: bool
    available: bool


@dataclass(frozen=True)
class Rollout:
    """``pods``: who is told to serve the new version, None for all. ``moving``: who of them is on the way, and may be out of the Service."""

    pods: tuple[str, ...] | None
    moving: frozenset[str]
    complete: bool


def roll_out(
    pods: Sequence[PodView], told: Sequence[str] | None, max_unavailable: int, absent: frozenset[str] = frozenset()
) -> Rollout:
    """The next step of a roll-out that has an older version to begin with.

    ``told`` are the pods that are on their way already: a pod is never called back because of a new calculation. ``absent`` are pods
    that other adapters' roll-outs have taken out of the Service: a Deployment's pods serve all of its adapters. At least one pod stays,
    if there is more than one. A refusal stops the roll-out where it is; the other pods stay on the older version.
    """
    known = {pod.name for pod in pods}
    listed = known if told is None else known & set(told)
    listed |= {pod.name for pod in pods if pod.done}
    if pods and all(pod.done for pod in pods):
        return Rollout(None, frozenset(), complete=True)
    moving = {pod.name for pod in pods if pod.name in listed and not pod.done and not pod.refused}
    away = moving | absent | {pod.name for pod in pods if not pod.available}
    budget = min(max_unavailable, max(1, len(pods) - 1))
    if not any(pod.refused for pod in pods):
        # pods that are out of the Service anyway cost nothing; those on neither version gain most
        for pod in sorted(pods, key=lambda pod: (pod.name not in away, pod.on_previous, pod.name)):
            if pod.name not in listed and (pod.name in away or len(away) < budget):
                listed.add(pod.name)
                moving.add(pod.name)
                away.add(pod.name)
    return Rollout(tuple(sorted(listed)), frozenset(moving), complete=False)
