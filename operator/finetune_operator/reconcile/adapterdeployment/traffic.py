"""Plan a roll-out by shares of the requests: every pod holds the versions, each under a name of its own. Pure.

Nothing moves on a pod: a gateway gives each request for the served name to one version. So a version must be proven on
each pod that takes traffic before it gets a share, and stays there while it has one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from finetune_api.adapterdeployment import AdapterDeploymentStatus, find_last_good
from finetune_api.messages import AgentAdapter, DesiredAdapter
from finetune_api.reasons import Reason
from finetune_api.version_paths import names_version, version_name
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.canary import find_traffic_stage
from finetune_operator.policies.failed_rollout import find_refusal
from finetune_operator.policies.rollout import PodView, compute_budget, measure_pause, roll_out
from finetune_operator.policies.traffic import divide
from finetune_operator.reconcile.adapterdeployment.model import Member, Observed
from finetune_operator.reconcile.adapterdeployment.rollout import find_report, view_pods
from finetune_operator.reconcile.adapterdeployment.version import build_entry
from finetune_operator.reconcile.status_builder import read_status
from finetune_operator.resources.model_rewrite import (
    build_rewrite,
    find_change_time,
    find_own,
    is_written,
    read_shares,
)
from finetune_operator.resources.workloads import has_rolled_out

LEAVING_SECONDS = 15.0
"""How long a version stays on the pods after it has lost its share: the gateway hears of that a moment later."""


def plan_traffic(
    observed: Observed,
    member: Member,
    before: Sequence[DesiredAdapter],
    unavailable: frozenset[str],
    now: datetime,
) -> tuple[Member, frozenset[str]]:
    """Plan the next step of a member with ``canary.traffic``.

    Args:
        observed: The serving group.
        member: The member, resolved.
        before: The member's entries in the ConfigMap as it is now, the desired version first.
        unavailable: Pods that older members take out of the Service in this pass.
        now: The time of this pass.

    Returns:
        The member with its new entries and its rewrite, and ``unavailable`` with the pods that it takes out.
    """
    spec, desired, meta = member.spec, member.desired, member.resource["metadata"]
    if spec is None or desired is None or spec.traffic is None or member.obstacle is not None:
        is_taken = member.obstacle is not None and member.obstacle.reason is Reason.SERVED_NAME_TAKEN
        return _keep(member, () if is_taken else before), unavailable
    status = read_status(AdapterDeploymentStatus, member.resource.get("status") or {})
    active = status.active
    is_new = active is not None and active.digest != desired.version.digest
    stable = build_entry(member.resource, spec, active) if active is not None and is_new else None
    reported, views = _view(observed, member, desired, stable)
    own = find_own(observed.gateways[meta["name"]].rewrites, member.resource)
    is_resident = any(view.proven for view in views) and all(view.proven for view in views if view.available)
    if own is None and not _has_rolled_out(observed, len(views)):
        is_resident = False  # pods without the agent may still take traffic
    canary = spec.strategy.canary if stable is not None and member.rollback is None else None
    stage = find_traffic_stage(canary, status.canary, desired.version.digest, len(views))
    name = version_name(spec.served_name, desired.version.digest)
    stable_name = version_name(spec.served_name, stable.version.digest) if stable is not None else None
    shares = divide(stable_name, name, is_resident=is_resident, percent=stage.traffic if stage is not None else None)
    is_divided = is_resident and read_shares(own) == shares
    if stage is not None:
        stage = replace(stage, reached=is_divided)
    is_proven = bool(views) and all(view.proven for view in views)
    rolled_out = is_proven and is_divided and stage is None and _has_rolled_out(observed, len(views))
    failure = find_refusal(reported, desired.version.digest, compute_budget(len(views), spec.strategy.max_unavailable))
    member = replace(member, pods=reported, stage=stage, failure=failure, rolled_out=rolled_out)
    if spec.suspend and not rolled_out:
        return replace(_keep(member, before), suspended=True), unavailable
    rewrite = build_rewrite(member.resource, spec.served_name, spec.traffic.inference_model_rewrite, shares or {})
    is_due = shares is not None and not is_written(own, rewrite)
    member = replace(member, entry=desired, rewrite=rewrite if is_due else None)
    pods, pause, moving = None, 0.0, frozenset[str]()
    if stable is not None:
        pause_seconds = 0 if member.rollback is not None else spec.strategy.pause_seconds
        pause = measure_pause(views, pause_seconds, status.pods.updated, status.progressed_at, now)
        assigned = next((entry.pods for entry in before if entry.version.digest == desired.version.digest), [])
        rollout = roll_out(views, assigned, 0 if pause else spec.strategy.max_unavailable, unavailable)
        pods, moving = rollout.assigned, rollout.moving
    versions = [desired, *_list_older(member, stable, status)]
    versions += _list_leaving(before, versions, own, now)
    entries = (_name_version(entry, pods if number == 0 else None) for number, entry in enumerate(versions))
    return replace(member, versions=tuple(entries), pause=pause), unavailable | moving


def _keep(member: Member, before: Sequence[DesiredAdapter]) -> Member:
    return replace(member, entry=before[0] if before else None, versions=tuple(before))


def _view(
    observed: Observed, member: Member, desired: DesiredAdapter, stable: DesiredAdapter | None
) -> tuple[Mapping[str, AgentAdapter], list[PodView]]:
    """View the pods with regard to the desired version, and what their agents reported about it."""
    reports = {pod["metadata"]["name"]: _find_report(observed, member, pod, desired, stable) for pod in observed.pods}
    views = view_pods(observed, reports, desired.version, stable.version if stable is not None else None)
    return {name: adapter for name, adapter in reports.items() if adapter is not None}, views


def _find_report(
    observed: Observed, member: Member, pod: Object, desired: DesiredAdapter, stable: DesiredAdapter | None
) -> AgentAdapter | None:
    """Find what a pod's agent reported about the desired version; while that does not answer, the stable one does."""
    report = observed.agent_reports.get(pod["metadata"]["name"])
    if report is None:  # until then the status says what it reported last
        return find_report(observed, member, pod)
    own = [item for item in report.adapters if item.deployment == member.resource["metadata"]["name"]]
    found = {item.digest: item for item in own if names_version(item.served_name)}
    new = found.get(desired.version.digest)
    old = found.get(stable.version.digest) if stable is not None else None
    if new is None:
        return old
    if new.active_digest is None and old is not None:
        return new.model_copy(update={"active_digest": old.active_digest})
    return new


def _has_rolled_out(observed: Observed, pods: int) -> bool:
    return observed.workload is not None and has_rolled_out(observed.workload, pods)


def _list_older(member: Member, stable: DesiredAdapter | None, status: AdapterDeploymentStatus) -> list[DesiredAdapter]:
    """List the version that has the other share or, once there is none, that of a later rollback."""
    if stable is not None or member.spec is None or member.desired is None:
        return [stable] if stable is not None else []
    good = find_last_good(status.history, member.desired.version.digest)
    return [build_entry(member.resource, member.spec, good)] if good is not None else []


def _list_leaving(
    before: Sequence[DesiredAdapter], versions: Sequence[DesiredAdapter], own: Object | None, now: datetime
) -> list[DesiredAdapter]:
    """List the versions that still have a share, or had one a moment ago."""
    shares, changed_at = read_shares(own) or {}, find_change_time(own)
    kept = {entry.version.digest for entry in versions}
    is_recent = changed_at is not None and (now - changed_at).total_seconds() < LEAVING_SECONDS
    others = [entry for entry in before if entry.version.digest not in kept]
    return [entry for entry in others if is_recent or entry.served_name in shares]


def _name_version(entry: DesiredAdapter, pods: Sequence[str] | None) -> DesiredAdapter:
    """Return the entry of one version, under its own name, on some pods or on all."""
    served_name = entry.served_name.partition("@")[0]
    return entry.model_copy(
        update={
            "served_name": version_name(served_name, entry.version.digest),
            "pods": list(pods) if pods is not None else None,
            "previous": None,
            "last_good": None,
            "drain": False,
        }
    )
