"""Parse the AdapterDeployments of a serving group, and find what each asks for, or the first obstacle. Pure."""

from dataclasses import replace

from pydantic import ValidationError

from finetune_api.adapterdeployment import (
    PROMOTION_ANNOTATION,
    AdapterDeploymentSpec,
    AdapterDeploymentStatus,
    Analysis,
    read_promotion,
)
from finetune_api.lenient import read_spec
from finetune_api.messages import DesiredAdapter
from finetune_api.reasons import Reason
from finetune_api.validation import problems
from finetune_engines import ENGINES
from finetune_engines.fit import find_warnings
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.allowed_urls import is_allowed
from finetune_operator.policies.rollback import find_rollback
from finetune_operator.reconcile.adapterdeployment.gateway import check_gateway
from finetune_operator.reconcile.adapterdeployment.inject import check_secret
from finetune_operator.reconcile.adapterdeployment.model import Member, Observed, Obstacle, ServingTarget, Source
from finetune_operator.reconcile.adapterdeployment.resolve import check_target, find_target, resolve
from finetune_operator.reconcile.adapterdeployment.version import build_entry, build_version
from finetune_operator.reconcile.status_builder import read_status
from finetune_operator.settings import Settings


def parse_members(observed: Observed) -> list[Member]:
    """Parse the AdapterDeployments, the oldest first. If several have one served name, only the oldest gets it."""
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
                f"spec.servedName: {spec.served_name!r} is served on {observed.target} by the older "
                f"AdapterDeployment {owner!r}: choose another name, or delete that one",
            )
        elif ENGINES[spec.target.engine].serves_merged and len(names) > 1:
            obstacle = Obstacle(
                Reason.SERVED_NAME_TAKEN,
                f"spec.target: {observed.target} serves the older AdapterDeployment {next(iter(names.values()))!r}, "
                "and an engine without LoRA serves one model: choose another Deployment",
            )
        paths = tuple(f"spec.{path}" for path in unknown)
        members.append(Member(resource, spec, obstacle, unknown_fields=paths))
    return members


def find_shared_target(observed: Observed, members: list[Member]) -> ServingTarget | None:
    """Find the target of the oldest member that has one: all members share its agent, engine and port."""
    for member in members:
        if member.spec is not None:
            target = find_target(observed.workload, observed.target, member.spec)
            if isinstance(target, ServingTarget):
                return target
    return None


def resolve_member(
    observed: Observed,
    member: Member,
    shared: ServingTarget | None,
    before: DesiredAdapter | None,
    mounted: frozenset[str] | None,
    settings: Settings,
) -> Member:
    """Return the member with what it asks for, or with the first obstacle.

    Args:
        observed: The serving group.
        member: The member, parsed.
        shared: The target that all members share.
        before: The member's entry in the ConfigMap as it is now.
        mounted: The only Secrets that the agents can read now; None without a limit.
        settings: The operator's settings.
    """
    if member.spec is None or member.obstacle is not None:
        return member
    target = find_target(observed.workload, observed.target, member.spec)
    if isinstance(target, Obstacle):
        return replace(member, obstacle=target)
    if shared is not None and not target.shares_engine(shared):
        text = (
            "spec.target and spec.strategy.type: engine, container, port, apiKeySecretRef and the strategy's type must "
            f"be the same in all AdapterDeployments of {observed.target}; the oldest has engine {shared.engine.name}, "
            f"container {shared.container!r}, port {shared.port}, apiKeySecretRef {shared.api_key_secret or 'unset'}, "
            f"type {'Rolling' if shared.rolling else 'Hot'}"
        )
        return replace(member, obstacle=Obstacle(Reason.SPEC_INVALID, text))
    source = resolve(member.resource, member.spec, observed.finetune_jobs, before)
    if isinstance(source, Obstacle):
        return replace(member, obstacle=source)
    asked = build_version(source.desired, source.finetune_job)
    status = read_status(AdapterDeploymentStatus, member.resource.get("status") or {})
    follows = member.spec.adapter.selector is not None
    rollback, note = find_rollback(member.resource["metadata"], status, asked.digest, until_next_version=follows)
    held = len(observed.resources) + len(observed.gateways)  # with a gateway each holds two versions
    warnings = find_warnings(source.adapter, target.engine_args, target.engine, held)
    promotion = _check_promotion(member.resource["metadata"])
    note = ". ".join(filter(None, [source.note, note, promotion, *warnings]))
    if rollback is not None:
        entry = build_entry(member.resource, member.spec, rollback.target)
        source = Source(entry, rollback.target.fine_tune_job)
    name, versions = member.resource["metadata"]["name"], _list_engine_versions(observed)
    obstacle = check_target(name, source.adapter, target, observed.target, versions)
    if obstacle is None and observed.workload is not None:
        obstacle = check_secret(observed.workload, source.desired.secret, mounted)
    if obstacle is None:
        obstacle = _check_analyses(member.spec, observed.namespace, settings)
    if obstacle is None and member.spec.traffic is not None:
        obstacle = check_gateway(observed, member.resource, member.spec.served_name, member.spec.traffic, settings)
    return replace(
        member,
        asked=asked,
        rollback=rollback,
        desired=source.desired,
        finetune_job=source.finetune_job,
        note=note,
        obstacle=obstacle,
    )


def _list_engine_versions(observed: Observed) -> list[str | None]:
    """List the versions of the engine that the pods have reported."""
    return [report.engine.version for report in observed.agent_reports.values() if report.engine is not None]


def _check_promotion(metadata: Object) -> str:
    """Return what is wrong with a person's request to go on with a canary; empty if nothing is."""
    try:
        read_promotion(metadata)
    except ValueError as error:
        return f"the annotation {PROMOTION_ANNOTATION} is not followed: {error}"
    return ""


def _check_analyses(spec: AdapterDeploymentSpec, namespace: str, settings: Settings) -> Obstacle | None:
    """Check that the administrator allows what the steps of the canary call or create."""
    for number, step in enumerate(spec.strategy.canary.steps if spec.strategy.canary is not None else ()):
        refusal = _find_refusal(step.analysis, namespace, settings) if step.analysis is not None else None
        if refusal is not None:
            text = f"spec.strategy.canary.steps[{number}].analysis: the administrator does not allow {refusal}"
            return Obstacle(Reason.ANALYSIS_NOT_ALLOWED, text)
    return None


def _find_refusal(analysis: Analysis, namespace: str, settings: Settings) -> str | None:
    """Find what of an analysis the administrator does not allow, and the chart value that allows it."""
    if analysis.url is not None and not is_allowed(analysis.url, settings.analysis_urls, namespace):
        allowed = ", ".join(settings.analysis_urls) or "no addresses"
        return f"{analysis.url}; allowed are {allowed} (chart value analysis.allowedUrls)"
    if analysis.job is not None and not settings.analysis_jobs:
        return "job (chart value analysis.jobs.enabled)"
    if analysis.analysis_template_ref is not None and not settings.analysis_runs:
        return "analysisTemplateRef (chart value analysis.analysisRuns.enabled)"
    return None
