"""Write into a status how far the canary of a version is. Pure.

The pods follow the status: the pass after a step has passed lets more of them take the version, so that no restart of
the operator forgets a step.
"""

from dataclasses import replace
from datetime import datetime

from finetune_api.adapterdeployment import (
    AdapterDeploymentStatus,
    Analysis,
    CanaryStatus,
    PromotionRequest,
    read_promotion,
)
from finetune_api.timestamps import format_timestamp
from finetune_api.version_paths import version_name
from finetune_operator.policies.analysis import AnalysisId, AnalysisRequest, Subject
from finetune_operator.policies.canary import Hold, advance, needs_analysis
from finetune_operator.reconcile.adapterdeployment.model import AdapterStatusBuilder, Member, Observed
from finetune_operator.resources.analysis_objects import name_object


def set_canary(
    builder: AdapterStatusBuilder, observed: Observed, member: Member, now: datetime
) -> tuple[Hold | None, bool]:
    """Advance the canary of the desired version.

    Returns:
        What the present step waits for, if its pods serve the version; and whether a step has passed just now.
    """
    status = builder.read()
    digest = status.desired.digest if status.desired is not None else ""
    known = status.canary if status.canary is not None and status.canary.digest == digest else None
    if known is None:
        builder.remove("canary")
    if member.stage is None or member.spec is None or member.spec.suspend or member.failure is not None:
        return None, False
    before = known or CanaryStatus(digest=digest, started_at=format_timestamp(now))
    ended = observed.analyses.get(member.resource["metadata"]["name"])
    is_of_this_step = ended is not None and ended[0] == _identify(member, before)
    outcome = ended[1] if ended is not None and is_of_this_step else None
    generation = member.resource["metadata"]["generation"]
    after, hold = advance(member.stage, before, _read_request(member), outcome, generation, now)
    builder.remove("canary")
    builder.set(AdapterDeploymentStatus(canary=after))
    if hold is not None and hold.analysis_runs:
        hold = replace(hold, message=hold.message + _name_object(member.stage.step.analysis, _identify(member, after)))
    return hold, after.passed_steps > before.passed_steps


def build_analysis(builder: AdapterStatusBuilder, member: Member, now: datetime) -> AnalysisRequest | None:
    """Build the analysis that is due; None if none is."""
    status, stage = builder.read(), member.stage
    canary, desired = status.canary, status.desired
    if stage is None or canary is None or desired is None or canary.digest != desired.digest or member.spec is None:
        return None
    analysis, generation = stage.step.analysis, member.resource["metadata"]["generation"]
    is_held = member.spec.suspend or member.failure is not None or member.obstacle is not None
    if analysis is None or is_held or not needs_analysis(stage, canary, generation, now):
        return None
    serving = {name for name, pod in member.pods.items() if pod.active_digest == desired.digest}
    others = member.pods.keys() - serving
    served_name, previous = member.spec.served_name, status.active.digest if status.active is not None else ""
    models = (served_name, served_name)
    if member.spec.traffic is not None:  # all pods have both
        others, models = serving, (version_name(served_name, desired.digest), version_name(served_name, previous))
    subject = Subject(
        id=_identify(member, canary),
        served_name=served_name,
        digest=desired.digest,
        previous_digest=previous,
        pods=tuple(sorted(serving)),
        stable_pods=tuple(sorted(others)),
        model=models[0],
        stable_model=models[1],
    )
    return AnalysisRequest(analysis, subject)


def _identify(member: Member, canary: CanaryStatus) -> AnalysisId:
    meta, request = member.resource["metadata"], _read_request(member)
    return AnalysisId(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        generation=meta["generation"],
        started_at=canary.started_at,
        step=canary.passed_steps + 1,
        reached_at=canary.reached_at or "",
        again=(request.again or "") if request is not None else "",
    )


def _name_object(analysis: Analysis | None, identity: AnalysisId) -> str:
    """Name the object that decides, for a person who wants to read its logs; empty if it is an address."""
    if analysis is None or analysis.url is not None:
        return ""
    return f" ({'Job' if analysis.job is not None else 'AnalysisRun'} {name_object(identity)!r})"


def list_evidence(builder: AdapterStatusBuilder) -> list[str]:
    """List what let the version pass the steps of its canary."""
    canary = builder.read().canary
    return list(canary.evidence) if canary is not None else []


def describe_stage(member: Member) -> str:
    """Describe the step in a few words; empty without a canary."""
    stage = member.stage
    if stage is None:
        return ""
    size = "1 pod" if stage.pods == 1 else f"{stage.pods} pods"
    if stage.traffic is not None:
        size = f"{stage.traffic} % of the requests"
    return f"canary step {stage.number} of {stage.total} ({size}): "


def _read_request(member: Member) -> PromotionRequest | None:
    try:
        return read_promotion(member.resource["metadata"])
    except ValueError:  # the condition Accepted says what is wrong
        return None
