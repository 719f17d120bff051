"""Plan a pass over a serving group. Pure.

The plan is the agents' desired state and the injection, or their removal.

One ConfigMap and one injection serve all AdapterDeployments of a Deployment, so they are planned together. One that
cannot be rolled out leaves what its pods serve as it is, and never holds up another.
"""

from dataclasses import replace
from datetime import datetime

from pydantic import ValidationError

from finetune_api.adapterdeployment import (
    AdapterDeploymentSpec,
    AdapterDeploymentStatus,
    AdapterVersion,
    find_last_good,
)
from finetune_api.lenient import read_spec
from finetune_api.messages import DesiredAdapter, DesiredState, DesiredVersion
from finetune_api.reasons import Reason
from finetune_api.validation import problems
from finetune_operator.policies.engine_fit import find_warnings
from finetune_operator.policies.rollback import find_rollback
from finetune_operator.reconcile.adapterdeployment.inject import (
    build_agent_parameters,
    can_read,
    check_secret,
    find_held_secrets,
    plan_injection,
)
from finetune_operator.reconcile.adapterdeployment.model import (
    Member,
    Observed,
    Obstacle,
    Plan,
    ServingTarget,
    Source,
)
from finetune_operator.reconcile.adapterdeployment.resolve import check_target, find_target, resolve
from finetune_operator.reconcile.adapterdeployment.rollout import plan_rollout
from finetune_operator.reconcile.adapterdeployment.version import build_entry, build_version
from finetune_operator.reconcile.status_builder import read_status
from finetune_operator.resources.desired_state import build_config_map, read_config_map
from finetune_operator.resources.injected import is_injected
from finetune_operator.settings import Settings

WAIT_SECONDS = 15.0
"""How often a group is looked at that waits: before the injection its Deployment is not watched."""


def make_plan(observed: Observed, now: datetime, settings: Settings) -> Plan:
    """Plan one pass for all members. A group without AdapterDeployments gives everything back."""
    if not observed.resources:
        return Plan(remove=True)
    before_state = read_config_map(observed.config_map)
    entries = {entry.deployment: entry for entry in before_state.adapters}
    parsed = _parse(observed)
    lead = _find_lead(observed, parsed)
    agent = build_agent_parameters(lead, settings) if lead is not None else None
    held = find_held_secrets(observed.deployment, agent) if agent is not None else None
    members: list[Member] = []
    unavailable: frozenset[str] = frozenset()
    for member in parsed:
        before = entries.get(member.resource["metadata"]["name"])
        resolved = _resolve(observed, member, lead, before, held)
        rolled, unavailable = plan_rollout(observed, resolved, before, unavailable, now)
        members.append(_keep_last_good(rolled))
    waits = any(member.obstacle is not None or not member.rolled_out for member in members)
    due = [WAIT_SECONDS] * waits + [member.pause for member in members if member.pause]
    plan = Plan(tuple(members), requeue_after=min(due, default=None))
    adapters = sorted(
        (member.entry for member in members if member.entry is not None), key=lambda entry: entry.deployment
    )
    if (
        observed.deployment is None
        or lead is None
        or agent is None
        or (not adapters and not is_injected(observed.deployment))
    ):
        return plan
    state = DesiredState(
        engine=lead.engine.name,
        port=lead.port,
        max_lora_rank=lead.engine_args.max_lora_rank,
        api_key_secret=lead.api_key_secret if can_read(held, lead.api_key_secret) else before_state.api_key_secret,
        adapters=adapters,
    )
    return replace(
        plan,
        state=state,
        config_map=build_config_map(observed.namespace, observed.name, state),
        injection=plan_injection(
            observed.deployment,
            agent,
            [lead.api_key_secret, *(entry.secret for entry in adapters), *map(_find_last_good_secret, members)],
            held,
        ),
    )


def _keep_last_good(member: Member) -> Member:
    """Tell the pods which version to keep on their disks: the one to which a rollback would go."""
    good = _find_last_good(member)
    if member.entry is None:
        return member
    version = DesiredVersion(uri=good.uri, digest=good.digest) if good is not None else None
    return replace(member, entry=member.entry.model_copy(update={"last_good": version}))


def _find_last_good_secret(member: Member) -> str | None:
    """Find the Secret of the version to which a rollback would go: the pods keep it mounted."""
    good = _find_last_good(member)
    return good.secret_ref.name if good is not None and good.secret_ref is not None else None


def _find_last_good(member: Member) -> AdapterVersion | None:
    if member.entry is None:
        return None
    status = read_status(AdapterDeploymentStatus, member.resource.get("status") or {})
    return find_last_good(status.history, member.entry.version.digest)


def _parse(observed: Observed) -> list[Member]:
    """Parse the AdapterDeployments, the oldest first; of several with one served name the oldest has it."""
    members: list[Member] = []
    names: dict[str, str] = {}
    for resource in observed.resources:
        try:
            spec, unknown = read_spec(AdapterDeploymentSpec, resource["spec"])
        except ValidationError as error:
            text = "; ".join(str(problem) for problem in problems(error))
            members.append(Member(resource, None, Obstacle(Reason.SPEC_INVALID, text)))
            continue
        owner = names.setdefault(spec.served_name, resource["metadata"]["name"])
        obstacle = None
        if owner != resource["metadata"]["name"]:
            obstacle = Obstacle(
                Reason.SERVED_NAME_TAKEN,
                f"spec.servedName: {spec.served_name!r} is served on Deployment {observed.name!r} by the older "
                f"AdapterDeployment {owner!r}: choose another name, or delete that one",
            )
        paths = tuple(f"spec.{path}" for path in unknown)
        members.append(Member(resource, spec, obstacle, unknown_fields=paths))
    return members


def _find_lead(observed: Observed, members: list[Member]) -> ServingTarget | None:
    """Find the target of the oldest member that has one: all members share its agent, engine and port."""
    for member in members:
        if member.spec is not None:
            target = find_target(observed.deployment, observed.name, member.spec)
            if isinstance(target, ServingTarget):
                return target
    return None


def _resolve(
    observed: Observed,
    member: Member,
    lead: ServingTarget | None,
    before: DesiredAdapter | None,
    held: frozenset[str] | None,
) -> Member:
    """Find what the member asks for, or the first obstacle."""
    if member.spec is None or member.obstacle is not None:
        return member
    target = find_target(observed.deployment, observed.name, member.spec)
    if isinstance(target, Obstacle):
        return replace(member, obstacle=target)
    if lead is not None and not target.shares_engine(lead):
        text = (
            "spec.target: container, port and apiKeySecretRef must be the same in all AdapterDeployments of Deployment "
            f"{observed.name!r}; the oldest has container {lead.container!r}, port {lead.port}, "
            f"apiKeySecretRef {lead.api_key_secret or 'unset'}"
        )
        return replace(member, obstacle=Obstacle(Reason.SPEC_INVALID, text))
    source = resolve(member.resource, member.spec, observed.finetune_jobs, before)
    if isinstance(source, Obstacle):
        return replace(member, obstacle=source)
    asked = build_version(source.desired, source.finetune_job)
    status = read_status(AdapterDeploymentStatus, member.resource.get("status") or {})
    follows = member.spec.adapter.selector is not None
    rollback, note = find_rollback(member.resource["metadata"], status, asked.digest, until_next_version=follows)
    warnings = find_warnings(source.adapter, target.engine_args, target.engine, len(observed.resources))
    note = ". ".join(filter(None, [source.note, note, *warnings]))
    if rollback is not None:
        entry = build_entry(member.resource, member.spec, rollback.target)
        source = Source(entry, rollback.target.fine_tune_job)
    obstacle = check_target(source.adapter, target, observed.name)
    if obstacle is None and observed.deployment is not None:
        obstacle = check_secret(observed.deployment, source.desired.secret, held)
    return replace(
        member,
        asked=asked,
        rollback=rollback,
        desired=source.desired,
        finetune_job=source.finetune_job,
        note=note,
        obstacle=obstacle,
    )
