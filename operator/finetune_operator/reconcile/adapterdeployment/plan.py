"""Plan a pass over a serving group. Pure.

The plan is the agents' desired state and the injection, or their removal.

One ConfigMap and one injection serve all AdapterDeployments of a workload, so they are planned together. One that
cannot be rolled out does not change what its pods serve, and does not delay another one.
"""

from dataclasses import replace
from datetime import datetime

from finetune_api.adapterdeployment import AdapterDeploymentStatus, AdapterVersion, find_last_good
from finetune_api.messages import DesiredAdapter, DesiredState, DesiredVersion
from finetune_operator.kube.kinds import Object
from finetune_operator.reconcile.adapterdeployment.inject import (
    build_agent_parameters,
    can_read,
    find_mounted_secrets,
    plan_injection,
)
from finetune_operator.reconcile.adapterdeployment.members import find_shared_target, parse_members, resolve_member
from finetune_operator.reconcile.adapterdeployment.model import Injection, Member, Observed, Plan, ServingTarget
from finetune_operator.reconcile.adapterdeployment.rollout import plan_rollout
from finetune_operator.reconcile.adapterdeployment.tracks import plan_labels
from finetune_operator.reconcile.adapterdeployment.traffic import plan_traffic
from finetune_operator.reconcile.status_builder import read_status
from finetune_operator.resources.desired_state import build_config_map, read_config_map
from finetune_operator.resources.injected import is_injected
from finetune_operator.resources.rolling import build_template_state
from finetune_operator.resources.workloads import rules_of
from finetune_operator.settings import Settings

GATEWAY_SECONDS = 60.0
"""Time between two looks at the objects of a gateway, which are not watched."""
WAIT_SECONDS = 15.0
"""Time between two passes over a group that waits: before the injection its workload is not watched.

A group of pods that a selector names always waits, because pods without an agent are not watched.
"""


def make_plan(observed: Observed, now: datetime, settings: Settings) -> Plan:
    """Plan one pass for all members. If a group has no AdapterDeployments, everything of ours is removed."""
    before = read_config_map(observed.config_map)
    gets_agent = rules_of(observed.target.kind).GETS_AGENT
    if not observed.resources:
        return Plan(remove=True) if gets_agent else _plan_leaving(observed, before)
    parsed = parse_members(observed)
    target = find_shared_target(observed, parsed)
    mounted = _find_mounted_secrets(observed, target, settings)
    members = _plan_members(observed, parsed, target, mounted, before, now, settings)
    waits = any(member.obstacle is not None or not member.rolled_out for member in members)
    has_gateway = any(member.spec is not None and member.spec.traffic is not None for member in members)
    due = [WAIT_SECONDS] * (waits or not gets_agent) + [GATEWAY_SECONDS] * has_gateway
    due += [member.pause for member in members if member.pause]
    labels = plan_labels(members, observed.pods)
    plan = Plan(tuple(members), pod_labels=labels, requeue_after=min(due, default=None))
    if observed.workload is None or target is None:
        return plan
    if not is_injected(observed.workload) and all(member.entry is None for member in members):
        return plan
    state = _build_state(members, target, before, mounted)
    return replace(
        plan,
        state=state,
        config_map=build_config_map(observed.namespace, observed.target.group, state),
        injection=_plan_injection(observed.workload, members, target, state, settings) if gets_agent else None,
    )


def _plan_members(
    observed: Observed,
    parsed: list[Member],
    target: ServingTarget | None,
    mounted: frozenset[str] | None,
    before: DesiredState,
    now: datetime,
    settings: Settings,
) -> list[Member]:
    """Plan the next step of each member. The oldest is first, and may take pods out of the Service before others."""
    entries: dict[str, list[DesiredAdapter]] = {}
    for entry in before.adapters:
        entries.setdefault(entry.deployment, []).append(entry)
    members: list[Member] = []
    unavailable: frozenset[str] = frozenset()
    for member in parsed:
        own = entries.get(member.resource["metadata"]["name"], [])
        if member.spec is not None and member.spec.traffic is not None:
            plain = own[0].model_copy(update={"served_name": member.spec.served_name, "pods": None}) if own else None
            resolved = resolve_member(observed, member, target, plain, mounted, settings)
            planned, unavailable = plan_traffic(observed, resolved, own, unavailable, now)
            members.append(planned)
            continue
        first = own[0] if own else None
        resolved = resolve_member(observed, member, target, first, mounted, settings)
        planned, unavailable = plan_rollout(observed, resolved, first, unavailable, now)
        members.append(_keep_last_good(planned))
    return members


def _find_mounted_secrets(
    observed: Observed, target: ServingTarget | None, settings: Settings
) -> frozenset[str] | None:
    """Find the Secrets to which the pods are limited now; None without a limit.

    With the strategy Rolling there is none: a version comes with a new template, which mounts its Secret.
    """
    if target is None or target.rolling:
        return None
    return find_mounted_secrets(observed.workload, build_agent_parameters(target, settings))


def _build_state(
    members: list[Member], target: ServingTarget, before: DesiredState, mounted: frozenset[str] | None
) -> DesiredState:
    """Build what the agents are to serve. ``before`` is what the ConfigMap says now."""
    is_readable = can_read(mounted, target.api_key_secret)
    entries: list[DesiredAdapter] = []
    for member in members:
        entries += member.versions or ([member.entry] if member.entry is not None else [])
    return DesiredState(
        engine=target.engine.name,
        port=target.port,
        max_lora_rank=target.engine_args.max_lora_rank,
        api_key_secret=target.api_key_secret if is_readable else before.api_key_secret,
        adapters=sorted(entries, key=lambda entry: entry.deployment),
    )


def _plan_injection(
    workload: Object, members: list[Member], target: ServingTarget, state: DesiredState, settings: Settings
) -> Injection:
    """Plan the injection of the agent, with the Secrets of all adapters."""
    agent = build_agent_parameters(target, settings)
    secrets = [target.api_key_secret, *(entry.secret for entry in state.adapters)]
    if target.rolling:
        agent = replace(agent, template_state=build_template_state(state))
    else:
        secrets += map(_find_last_good_secret, members)
    return plan_injection(workload, agent, secrets, find_mounted_secrets(workload, agent))


def _plan_leaving(observed: Observed, before: DesiredState) -> Plan:
    """Plan a pass after the last AdapterDeployment is gone from pods whose users added the agent.

    The agents then serve nothing. The ConfigMap stays while there are such pods, because a pod that starts with the
    agent and without its ConfigMap would take no traffic.
    """
    if not observed.pods or observed.config_map is None:
        return Plan(remove=True)
    state = before.model_copy(update={"adapters": []})
    config_map = build_config_map(observed.namespace, observed.target.group, state)
    return Plan(state=state, config_map=config_map, requeue_after=WAIT_SECONDS)


def _keep_last_good(member: Member) -> Member:
    """Set the version that the pods keep on their disks: the one to which a rollback would go."""
    good = _find_last_good(member)
    if member.entry is None:
        return member
    version = DesiredVersion(uri=good.uri, digest=good.digest) if good is not None else None
    return replace(member, entry=member.entry.model_copy(update={"last_good": version}))


def _find_last_good_secret(member: Member) -> str | None:
    """Find the Secret of the version to which a rollback would go, which stays mounted in the pods."""
    good = _find_last_good(member)
    return good.secret_ref.name if good is not None and good.secret_ref is not None else None


def _find_last_good(member: Member) -> AdapterVersion | None:
    if member.entry is None:
        return None
    status = read_status(AdapterDeploymentStatus, member.resource.get("status") or {})
    return find_last_good(status.history, member.entry.version.digest)
