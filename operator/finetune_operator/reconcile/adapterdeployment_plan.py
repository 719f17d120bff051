"""What to write for a serving group: the agents' desired state, the injection, or their removal. Pure: no clock, no I/O.

One ConfigMap and one injection serve all AdapterDeployments of a Deployment, so they are planned together: one that cannot be rolled out
leaves what its pods serve as it is, and never holds up another.
"""

from dataclasses import replace

from pydantic import ValidationError

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.messages import AgentAdapter, DesiredAdapter, DesiredState, DesiredVersion
from finetune_api.reasons import Reason
from finetune_api.validation import problems
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.rollout import PodView, roll_out
from finetune_operator.reconcile.adapterdeployment_model import Group, GroupPlan, Member, Obstacle, Target
from finetune_operator.reconcile.adapterdeployment_resolve import check, find_target, resolve
from finetune_operator.resources.desired_state import build_config_map, read_config_map
from finetune_operator.resources.injection import AgentPlan, injection, is_injected
from finetune_operator.settings import Settings

WAIT_SECONDS = 15.0
"""How often a Deployment that is not watched yet, because nothing of ours is in it, is looked at."""


def plan_group(group: Group, settings: Settings) -> GroupPlan:
    """Decide for all members. A group without AdapterDeployments gives everything back."""
    if not group.adapters:
        return GroupPlan(remove=True)
    told = {entry.deployment: entry for entry in read_config_map(group.config_map).adapters}
    parsed = _parse(group)
    lead = _lead(group, parsed)
    members: list[Member] = []
    away: frozenset[str] = frozenset()
    for member in parsed:
        checked = _check(group, member, lead, told.get(member.item["metadata"]["name"]))
        rolled, away = _roll(group, checked, told.get(member.item["metadata"]["name"]), away)
        members.append(rolled)
    waits = any(member.obstacle is not None for member in members) or not all(member.complete for member in members)
    requeue = WAIT_SECONDS if waits else None
    entries = sorted(
        (member.entry for member in members if member.entry is not None), key=lambda entry: entry.deployment
    )
    if group.deployment is None or lead is None or (not entries and not is_injected(group.deployment)):
        return GroupPlan(tuple(members), requeue_after=requeue)
    state = DesiredState(
        engine=lead.engine.name,
        port=lead.port,
        max_lora_rank=lead.engine_args.max_lora_rank,
        api_key_secret=lead.api_key_secret,
        adapters=entries,
    )
    secrets = {entry.secret for entry in entries} | {lead.api_key_secret}
    agent = AgentPlan(
        container=lead.container,
        engine=lead.engine,
        secrets=tuple(sorted(secret for secret in secrets if secret is not None)),
        image=settings.operator_image,
        pull_policy=settings.image_pull_policy,
        report_url=settings.report_url,
    )
    return GroupPlan(
        tuple(members),
        state=state,
        config_map=build_config_map(group.namespace, group.name, state),
        injection=injection(group.deployment, agent),
        requeue_after=requeue,
    )


def replicas(deployment: Object) -> int:
    """How many pods the Deployment is to have."""
    return int(deployment["spec"].get("replicas", 1))


def is_rolled_out(deployment: Object, pods: int) -> bool:
    """Whether every pod of the Deployment is of its newest template, so that those with an agent are all there are."""
    status = deployment.get("status") or {}
    return (
        int(status.get("observedGeneration", 0)) >= int(deployment["metadata"].get("generation", 0))
        and int(status.get("updatedReplicas", 0)) == int(status.get("replicas", 0)) == replicas(deployment) == pods
    )


def is_available(pod: Object) -> bool:
    """Whether the pod takes traffic."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _parse(group: Group) -> list[Member]:
    """The members, the oldest first. Of several with one served name the oldest has it."""
    members: list[Member] = []
    names: dict[str, str] = {}
    for item in group.adapters:
        try:
            spec = AdapterDeploymentSpec.model_validate(item["spec"])
        except ValidationError as error:
            text = "; ".join(str(problem) for problem in problems(error))
            members.append(Member(item, None, Obstacle(Reason.SPEC_INVALID, text)))
            continue
        owner = names.setdefault(spec.served_name, item["metadata"]["name"])
        obstacle = None
        if owner != item["metadata"]["name"]:
            obstacle = Obstacle(
                Reason.SERVED_NAME_TAKEN,
                f"spec.servedName: {spec.served_name!r} is served on Deployment {group.name!r} by the older AdapterDeployment {owner!r}: "
                "choose another name, or delete that one",
            )
        members.append(Member(item, spec, obstacle))
    return members


def _lead(group: Group, members: list[Member]) -> Target | None:
    """The target as the oldest member has it: agent, engine and port are shared."""
    for member in members:
        if member.spec is not None:
            target = find_target(group.deployment, group.name, member.spec)
            if isinstance(target, Target):
                return target
    return None


def _check(group: Group, member: Member, lead: Target | None, before: DesiredAdapter | None) -> Member:
    """Find what the member wants, or the first thing that stands against it."""
    if member.spec is None or member.obstacle is not None:
        return member
    target = find_target(group.deployment, group.name, member.spec)
    if isinstance(target, Obstacle):
        return replace(member, obstacle=target)
    if lead is not None and (target.container, target.port, target.api_key_secret) != (
        lead.container,
        lead.port,
        lead.api_key_secret,
    ):
        text = (
            f"spec.target: container, port and apiKeySecretRef must be the same in all AdapterDeployments of Deployment {group.name!r}; the "
            f"oldest has container {lead.container!r}, port {lead.port}, apiKeySecretRef {lead.api_key_secret or 'unset'}"
        )
        return replace(member, obstacle=Obstacle(Reason.SPEC_INVALID, text))
    wanted, adapter, obstacle = resolve(member.item, member.spec, group.jobs, before)
    return replace(member, wanted=wanted, obstacle=obstacle or check(adapter, target, group.name))


def _roll(
    group: Group, member: Member, before: DesiredAdapter | None, away: frozenset[str]
) -> tuple[Member, frozenset[str]]:
    """What the pods are told for this member; ``away`` grows by the pods that it takes out of the Service."""
    spec = member.spec
    if before is not None and spec is not None and before.served_name != spec.served_name:
        before = None
    wanted = member.wanted
    if spec is None or wanted is None or member.obstacle is not None:
        taken = member.obstacle is not None and member.obstacle.reason is Reason.SERVED_NAME_TAKEN
        return replace(member, entry=None if taken else before), away
    pods = {pod["metadata"]["name"]: _standing(group, member, pod) for pod in group.pods}
    known = {name: adapter for name, adapter in pods.items() if adapter is not None}
    wanted = wanted.model_copy(update={"drain": group.deployment is not None and replicas(group.deployment) > 1})
    serving = {adapter.active_digest for adapter in known.values()}
    previous = _previous(member.item, wanted.version, before, serving)
    views = [_view(pod, pods[pod["metadata"]["name"]], wanted.version, previous) for pod in group.pods]
    done = bool(views) and all(view.done for view in views)
    complete = done and group.deployment is not None and is_rolled_out(group.deployment, len(views))
    if previous is None or done:
        entry = wanted.model_copy(update={"previous": None, "pods": None})
        return replace(member, entry=entry, pods=known, complete=complete), away
    told = before.pods if before is not None and before.version.digest == wanted.version.digest else []
    rollout = roll_out(views, told, spec.strategy.max_unavailable, away)
    entry = wanted.model_copy(
        update={"previous": previous, "pods": None if rollout.pods is None else list(rollout.pods)}
    )
    return replace(member, entry=entry, pods=known, complete=complete), away | rollout.moving


def _previous(
    item: Object, version: DesiredVersion, before: DesiredAdapter | None, serving: set[str | None]
) -> DesiredVersion | None:
    """The version for pods whose turn has not come: the one that every pod served last, else what they were told before, if any took it.

    None if there is nothing to protect: then no pod has to wait.
    """
    active = (item.get("status") or {}).get("active")
    if before is None or (before.version.digest == version.digest and before.previous is None):
        return None
    if active is not None and active["digest"] != version.digest:
        return DesiredVersion(uri=active["uri"], digest=active["digest"])
    if before.version.digest != version.digest:
        return before.version if before.version.digest in serving else None
    return before.previous


def _standing(group: Group, member: Member, pod: Object) -> AgentAdapter | None:
    """What the pod's agent said of this member; what status remembers, while the agent has not spoken to this operator yet."""
    name, meta = pod["metadata"]["name"], member.item["metadata"]
    if report := group.reports.get(name):
        return next((adapter for adapter in report.adapters if adapter.deployment == meta["name"]), None)
    status = member.item.get("status") or {}
    for remembered in status.get("podStatus") or []:
        if remembered["name"] == name and member.spec is not None:
            return AgentAdapter(
                deployment=meta["name"],
                served_name=member.spec.served_name,
                digest=(status.get("desired") or {}).get("digest", ""),
                active_digest=remembered.get("digest"),
                state=remembered["state"],
                reason=remembered.get("reason"),
                message=remembered.get("message", ""),
                load_seconds=remembered.get("loadSeconds"),
            )
    return None


def _view(
    pod: Object, adapter: AgentAdapter | None, version: DesiredVersion, previous: DesiredVersion | None
) -> PodView:
    told = adapter is not None and adapter.digest == version.digest
    active = adapter.active_digest if adapter is not None else None
    return PodView(
        name=pod["metadata"]["name"],
        done=told and active == version.digest and adapter is not None and adapter.state == "Active",
        refused=told and adapter is not None and adapter.state == "Refused",
        on_previous=previous is not None and active == previous.digest,
        available=is_available(pod),
    )
