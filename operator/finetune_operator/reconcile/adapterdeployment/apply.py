"""Apply the plan for a serving group, then write each status."""

import time
from datetime import datetime

from finetune_api.reasons import Reason
from finetune_operator.context import Context
from finetune_operator.kube.client import STRATEGIC_PATCH
from finetune_operator.kube.errors import ConflictError, ForbiddenError, InvalidError
from finetune_operator.kube.kinds import ADAPTER_DEPLOYMENT, CONFIG_MAP, DEPLOYMENT, FIELD_MANAGER, POD, Object
from finetune_operator.kube.ownership import field_step, find_owners
from finetune_operator.reconcile.adapterdeployment.model import Observed, Obstacle, Plan
from finetune_operator.reconcile.adapterdeployment.status import build_updates
from finetune_operator.reconcile.result import Result
from finetune_operator.reconcile.write_status import write_status
from finetune_operator.resources.desired_state import STATE_ANNOTATION, compute_state_digest, is_ours, is_written
from finetune_operator.resources.injected import find_copiers, is_injected, is_own_field
from finetune_operator.resources.removal import build_removal, build_removal_of_copy


async def apply(observed: Observed, plan: Plan, now: datetime, context: Context) -> Result:
    """Apply the plan. Raises ``KubeError`` if a call failed that may succeed later."""
    if plan.remove:
        await _remove(observed, context)
        context.injections.forget((observed.namespace, observed.name))
        return Result()
    obstacle = await _write_config_map(observed, plan, context)
    if obstacle is None:
        obstacle = await _inject(observed, plan, context)
        await _annotate_pods(observed, plan, context)
    updates = build_updates(observed, plan, obstacle, now)
    for update in updates:
        await write_status(ADAPTER_DEPLOYMENT, update.resource, update.status, update.events, context)
    due = [plan.requeue_after, *(update.requeue_after for update in updates)]
    return Result(min((seconds for seconds in due if seconds is not None), default=None))


async def _write_config_map(observed: Observed, plan: Plan, context: Context) -> Obstacle | None:
    """Write the desired state; return the obstacle if somebody else has a ConfigMap of this name."""
    if plan.config_map is None or is_written(observed.config_map, plan.config_map):
        return None
    found = observed.config_map
    if found is None:  # somebody else's is not in the cache
        meta = plan.config_map["metadata"]
        found = await context.kube.get(CONFIG_MAP, meta["namespace"], meta["name"])
    if found is not None and not is_ours(found):
        text = (
            f"the operator keeps what the pods of Deployment {observed.name!r} are to serve in ConfigMap "
            f"{found['metadata']['name']!r}, and somebody else has one of this name: rename or delete it"
        )
        return Obstacle(Reason.CONFIG_MAP_TAKEN, text)
    # with force: what somebody edited in it by hand is undone
    context.cache.put(CONFIG_MAP, await context.kube.apply(CONFIG_MAP, plan.config_map, force=True))
    return None


async def _inject(observed: Observed, plan: Plan, context: Context) -> Obstacle | None:
    """Put the agent into the Deployment; return what stands against it, if anything does."""
    if observed.deployment is None or plan.injection is None or not plan.injection.due:
        return None
    key = observed.namespace, observed.name
    if context.injections.delay(key, time.monotonic()) > 0:
        return Obstacle(Reason.INJECTION_CONTESTED, _describe_contest(observed.name, observed.deployment))
    body = plan.injection.body
    try:
        try:
            written = await context.kube.apply(DEPLOYMENT, body)
        except ConflictError as error:
            fields = [str(cause.get("field", "")) for cause in error.causes]
            if not fields:
                raise
            if not (find_copiers(observed.deployment) and all(map(is_own_field, fields))):
                return Obstacle(Reason.FIELD_CONFLICT, _describe_conflict(observed.name, error))
            written = await context.kube.apply(DEPLOYMENT, body, force=True)
        context.cache.put(DEPLOYMENT, written)
        context.injections.note(key, time.monotonic())
    except (InvalidError, ForbiddenError) as error:
        text = f"the API server does not let the agent into Deployment {observed.name!r}: {error.message}"
        return Obstacle(Reason.INJECTION_REFUSED, text)
    return None


def _describe_conflict(deployment: str, error: ConflictError) -> str:
    fields = "; ".join(f"{cause.get('field', '?')}: {cause.get('message', '?')}" for cause in error.causes)
    return (
        f"Deployment {deployment!r} has fields that the agent needs and that someone else owns ({fields}): "
        "take them out of what that manager applies, or give them the value that the agent needs"
    )


def _describe_contest(name: str, deployment: Object) -> str:
    path = [field_step("spec"), field_step("template")]
    others = sorted(find_owners(deployment, path) - {FIELD_MANAGER}) or ["another installation of this operator"]
    return (
        f"somebody takes the agent out of Deployment {name!r} again and again; besides the operator, its pod template "
        f"is written by: {', '.join(others)}. Let that one leave alone what it does not declare (server-side apply, or "
        "a patch in place of the whole object). The operator tries again, with pauses of one minute up to half an hour"
    )


async def _annotate_pods(observed: Observed, plan: Plan, context: Context) -> None:
    """Annotate the pods with the digest of the desired state.

    The kubelet then brings the new ConfigMap into the pods at once.
    """
    if plan.config_map is None:
        return
    digest = compute_state_digest(plan.config_map)
    for pod in observed.pods:
        meta = pod["metadata"]
        if (meta.get("annotations") or {}).get(STATE_ANNOTATION) != digest:
            patch = {"metadata": {"uid": meta["uid"], "annotations": {STATE_ANNOTATION: digest}}}
            patched = await context.kube.merge(POD, meta["namespace"], meta["name"], patch)
            if patched is not None:
                context.cache.put(POD, patched)


async def _remove(observed: Observed, context: Context) -> None:
    """Take the agent out of the Deployment, then delete the ConfigMap that it read until then."""
    if observed.deployment is not None and is_injected(observed.deployment):
        copy = build_removal_of_copy(observed.deployment)
        try:
            if copy is not None:
                await context.kube.merge(DEPLOYMENT, observed.namespace, observed.name, copy, STRATEGIC_PATCH)
            context.cache.put(DEPLOYMENT, await context.kube.apply(DEPLOYMENT, build_removal(observed.deployment)))
        except ConflictError:
            if await context.kube.get(DEPLOYMENT, observed.namespace, observed.name) is not None:
                raise
    if observed.config_map is not None and is_ours(observed.config_map):
        meta = observed.config_map["metadata"]
        await context.kube.delete(CONFIG_MAP, meta["namespace"], meta["name"], meta["uid"])
        context.cache.remove(CONFIG_MAP, observed.config_map)
