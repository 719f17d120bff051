"""Apply the plan for a serving group, then write each status."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial

from finetune_api.reasons import Reason
from finetune_operator.context import Context
from finetune_operator.kube.client import STRATEGIC_PATCH
from finetune_operator.kube.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError
from finetune_operator.kube.kinds import (
    ADAPTER_DEPLOYMENT,
    CONFIG_MAP,
    FIELD_MANAGER,
    MODEL_REWRITES,
    POD,
    SERVING_GROUP,
    Object,
)
from finetune_operator.kube.ownership import field_step, find_owners
from finetune_operator.kube.workloads import WorkloadRef
from finetune_operator.reconcile.adapterdeployment.model import Member, Observed, Obstacle, Plan
from finetune_operator.reconcile.adapterdeployment.status import build_updates
from finetune_operator.reconcile.result import Result
from finetune_operator.reconcile.write_status import write_status
from finetune_operator.resources.desired_state import STATE_ANNOTATION, compute_state_digest, is_ours, is_written
from finetune_operator.resources.injected import (
    INJECTION_ANNOTATION,
    VERSIONS_ANNOTATION,
    find_copiers,
    is_injected,
    is_own_field,
)
from finetune_operator.resources.removal import build_removal, build_removal_of_copy

AFTER_REWRITE = 1.0
"""Seconds from a change of an InferenceModelRewrite until the next pass, which finds it written."""
POD_WRITES = 8
"""Number of pods that are annotated at the same time."""


async def apply(observed: Observed, plan: Plan, now: datetime, context: Context) -> Result:
    """Apply the plan. Raises ``KubeError`` if a call failed that may succeed later."""
    if plan.remove:
        await _remove(observed, context)
        context.injections.forget((observed.namespace, observed.target.group))
        return Result()
    obstacle = await _write_config_map(observed, plan, context)
    if obstacle is None:
        obstacle = await _inject(observed, plan, context)
        await _annotate_pods(observed, plan, context)
    plan = await _write_rewrites(plan, context)
    updates = build_updates(observed, plan, obstacle, now)
    for update in updates:
        await write_status(ADAPTER_DEPLOYMENT, update.resource, update.status, update.events, context)
        if update.analysis is None:
            context.analyses.end((observed.namespace, update.resource["metadata"]["name"]))
        else:
            key = (SERVING_GROUP, observed.namespace, observed.target.group)
            context.analyses.start(update.analysis, partial(context.queue.add, key))
    has_rewritten = any(member.rewrite is not None for member in plan.members)
    due = [plan.requeue_after, *(update.requeue_after for update in updates), AFTER_REWRITE if has_rewritten else None]
    return Result(min((seconds for seconds in due if seconds is not None), default=None))


async def _write_config_map(observed: Observed, plan: Plan, context: Context) -> Obstacle | None:
    """Write the desired state; return the obstacle if somebody else has a ConfigMap of this name."""
    if plan.config_map is None or is_written(observed.config_map, plan.config_map):
        return None
    current = observed.config_map
    if current is None:  # the cache has no ConfigMap of somebody else
        meta = plan.config_map["metadata"]
        current = await context.kube.get(CONFIG_MAP, meta["namespace"], meta["name"])
    if current is not None and not is_ours(current):
        text = (
            f"the operator keeps what the pods of {observed.target} are to serve in ConfigMap "
            f"{current['metadata']['name']!r}, and somebody else has one of this name: rename or delete it"
        )
        return Obstacle(Reason.CONFIG_MAP_TAKEN, text)
    # force undoes manual edits
    context.cache.put(CONFIG_MAP, await context.kube.apply(CONFIG_MAP, plan.config_map, force=True))
    return None


async def _inject(observed: Observed, plan: Plan, context: Context) -> Obstacle | None:
    """Put the agent into the workload; return the obstacle if it cannot be put there."""
    if observed.workload is None or plan.injection is None or not plan.injection.due:
        return None
    key = observed.namespace, observed.target.group
    body, kind = plan.injection.body, observed.target.kind
    content = body["metadata"]["annotations"][INJECTION_ANNOTATION]
    if context.injections.delay(key, content, time.monotonic()) > 0:
        return Obstacle(Reason.INJECTION_CONTESTED, _describe_contest(observed.target, observed.workload))
    try:
        try:
            written = await context.kube.apply(kind, body)
        except ConflictError as error:
            fields = [str(cause.get("field", "")) for cause in error.causes]
            if not fields:
                raise
            if not (find_copiers(observed.workload) and all(map(is_own_field, fields))):
                return Obstacle(Reason.FIELD_CONFLICT, _describe_conflict(observed.target, error))
            written = await context.kube.apply(kind, body, force=True)
        context.cache.put(kind, written)
        context.injections.note(key, content, time.monotonic())
    except (InvalidError, ForbiddenError) as error:
        text = f"the API server refuses to add the agent to {observed.target}: {error.message}"
        return Obstacle(Reason.INJECTION_REFUSED, text)
    return None


async def _write_rewrites(plan: Plan, context: Context) -> Plan:
    """Write the InferenceModelRewrites; return the plan with the obstacle of each that is refused."""
    members = [await _write_rewrite(member, context) for member in plan.members]
    return replace(plan, members=tuple(members))


async def _write_rewrite(member: Member, context: Context) -> Member:
    if member.rewrite is None or member.spec is None or member.spec.traffic is None:
        return member
    group = member.spec.traffic.inference_model_rewrite.group
    try:
        await context.kube.apply(MODEL_REWRITES[group], member.rewrite, force=True)  # force undoes manual edits
    except (InvalidError, ForbiddenError, NotFoundError) as error:
        text = f"the API server refuses InferenceModelRewrite {member.rewrite['metadata']['name']!r}: {error.message}"
        return replace(member, obstacle=Obstacle(Reason.GATEWAY_NOT_READY, text), rewrite=None)
    return member


def _describe_conflict(target: WorkloadRef, error: ConflictError) -> str:
    fields = "; ".join(f"{cause.get('field', '?')}: {cause.get('message', '?')}" for cause in error.causes)
    return (
        f"{target} has fields that the agent needs and that someone else owns ({fields}): "
        "remove them from what that manager applies, or give them the value that the agent needs"
    )


def _describe_contest(target: WorkloadRef, workload: Object) -> str:
    path = [field_step("spec"), field_step("template")]
    others = sorted(find_owners(workload, path) - {FIELD_MANAGER}) or ["another installation of this operator"]
    return (
        f"somebody removes the agent from {target} again and again; besides the operator, its pod template "
        f"is written by: {', '.join(others)}. Make that one change only fields that it declares (server-side apply, or "
        "a patch in place of the whole object). The operator tries again, with pauses of one minute up to half an hour"
    )


async def _annotate_pods(observed: Observed, plan: Plan, context: Context) -> None:
    """Annotate the pods with the digest of the desired state, and label those of a canary.

    The kubelet then brings the new ConfigMap into the pods at once. Raises the first ``KubeError``, once all are done.
    """
    digest = compute_state_digest(plan.config_map) if plan.config_map is not None else None
    slots = asyncio.Semaphore(POD_WRITES)

    async def write(pod: Object) -> None:
        meta = pod["metadata"]
        change = _plan_pod_change(meta, digest, plan.pod_labels.get(meta["name"]))
        if change:
            async with slots:
                patch = {"metadata": {"uid": meta["uid"], **change}}
                patched = await context.kube.merge(POD, meta["namespace"], meta["name"], patch)
            if patched is not None:
                context.cache.put(POD, patched)

    for error in await asyncio.gather(*map(write, observed.pods), return_exceptions=True):
        if error is not None:
            raise error


def _plan_pod_change(meta: Object, digest: str | None, labels: Mapping[str, str | None] | None) -> Object:
    """Plan the change of a pod's metadata; ``digest`` is that of the desired state in the ConfigMap, if there is one.

    A pod whose template has the versions does not read the ConfigMap.
    """
    annotations = meta.get("annotations") or {}
    change: Object = {}
    if digest is not None and VERSIONS_ANNOTATION not in annotations and annotations.get(STATE_ANNOTATION) != digest:
        change["annotations"] = {STATE_ANNOTATION: digest}
    if labels:
        change["labels"] = dict(labels)
    return change


async def _remove(observed: Observed, context: Context) -> None:
    """Take the agent out of the workload, then delete the ConfigMap that it read until then."""
    if observed.workload is not None and is_injected(observed.workload):
        copy, kind, name = build_removal_of_copy(observed.workload), observed.target.kind, observed.target.name
        try:
            if copy is not None:
                await context.kube.merge(kind, observed.namespace, name, copy, STRATEGIC_PATCH)
            context.cache.put(kind, await context.kube.apply(kind, build_removal(observed.workload)))
        except ConflictError:
            if await context.kube.get(kind, observed.namespace, name) is not None:
                raise
    if observed.config_map is not None and is_ours(observed.config_map):
        meta = observed.config_map["metadata"]
        await context.kube.delete(CONFIG_MAP, meta["namespace"], meta["name"], meta["uid"])
        context.cache.remove(CONFIG_MAP, observed.config_map)
