"""Plan the labels by which Services distinguish the pods of a canary from the others. Pure.

While no canary is going on, each pod has both labels: then both Services have pods, whatever share each of them gets.
"""

from collections.abc import Sequence

from finetune_operator.kube.kinds import Object
from finetune_operator.reconcile.adapterdeployment.model import Member
from finetune_operator.resources.version_labels import build_labels, find_leftovers, label_prefix


def plan_labels(members: Sequence[Member], pods: Sequence[Object]) -> dict[str, dict[str, str | None]]:
    """Plan the labels to change, by the name of the pod; None for a label to remove."""
    labelled = [member for member in members if _divides_pods(member)]
    prefixes = {label_prefix(member.resource["metadata"]["name"]) for member in labelled}
    names = {pod["metadata"]["name"] for pod in pods}
    desired: dict[str, dict[str, str | None]] = {name: {} for name in names}
    for member in labelled:
        if member.obstacle is None:
            canaries = _find_canaries(member) & names
            for name in names:
                desired[name] |= _label(member, name, canaries, has_others=canaries != names)
    changes: dict[str, dict[str, str | None]] = {}
    for pod in pods:
        name, before = pod["metadata"]["name"], pod["metadata"].get("labels") or {}
        after = {**dict.fromkeys(find_leftovers(before, prefixes)), **desired[name]}
        if change := {key: value for key, value in after.items() if before.get(key) != value}:
            changes[name] = change
    return changes


def _divides_pods(member: Member) -> bool:
    spec = member.spec
    return spec is not None and spec.strategy.canary is not None and spec.traffic is None


def _label(member: Member, pod: str, canaries: set[str], *, has_others: bool) -> dict[str, str | None]:
    report = member.pods.get(pod)
    splits = bool(canaries) and has_others
    return build_labels(
        member.resource["metadata"]["name"],
        report.active_digest if report is not None else None,
        stable=not splits or pod not in canaries,
        canary=not splits or pod in canaries,
    )


def _find_canaries(member: Member) -> set[str]:
    """Find the pods of the new version: those assigned by a canary, or those that a rollback has not reached."""
    if member.desired is None or member.entry is None:
        return set()
    digest = member.desired.version.digest
    if member.stage is not None:
        return set(member.entry.pods or ()) if member.entry.version.digest == digest else set()
    if member.rollback is not None:
        return {name for name, pod in member.pods.items() if pod.active_digest not in (digest, None)}
    return set()
