"""Apply the plan for a serving group, then write each status."""

from datetime import datetime

from finetune_api.reasons import Reason
from finetune_operator.context import Context
from finetune_operator.kube.errors import ConflictError, ForbiddenError, InvalidError
from finetune_operator.kube.kinds import ADAPTER_DEPLOYMENT, CONFIG_MAP, DEPLOYMENT, POD
from finetune_operator.reconcile.adapterdeployment.model import Observed, Obstacle, Plan
from finetune_operator.reconcile.adapterdeployment.status import build_updates
from finetune_operator.reconcile.result import Result
from finetune_operator.reconcile.write_status import write_status
from finetune_operator.resources.desired_state import STATE_ANNOTATION, compute_state_digest, is_written
from finetune_operator.resources.injected import is_injected
from finetune_operator.resources.injection import build_removal


async def apply(observed: Observed, plan: Plan, now: datetime, context: Context) -> Result:
    """Apply the plan. Raises ``KubeError`` if a call failed that may succeed later."""
    if plan.remove:
        await _remove(observed, context)
        return Result()
    if plan.config_map is not None and not is_written(observed.config_map, plan.config_map):
        context.cache.put(CONFIG_MAP, await context.kube.apply(CONFIG_MAP, plan.config_map))
    obstacle = await _inject(observed, plan, context)
    await _annotate_pods(observed, plan, context)
    for update in build_updates(observed, plan, obstacle, now):
        await write_status(ADAPTER_DEPLOYMENT, update.resource, update.status, update.events, context)
    return Result(plan.requeue_after)


async def _inject(observed: Observed, plan: Plan, context: Context) -> Obstacle | None:
    """Put the agent into the Deployment; return what stands against it, if anything does."""
    if plan.injection is None or not plan.injection.due:
        return None
    try:
        context.cache.put(DEPLOYMENT, await context.kube.apply(DEPLOYMENT, plan.injection.body))
    except ConflictError as error:
        if not error.causes:
            raise
        return Obstacle(Reason.FIELD_CONFLICT, _describe_conflict(observed.name, error))
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
            written = await context.kube.merge(POD, meta["namespace"], meta["name"], patch)
            if written is not None:
                context.cache.put(POD, written)


async def _remove(observed: Observed, context: Context) -> None:
    """Take the agent out of the Deployment, then delete the ConfigMap that it read until then."""
    if observed.deployment is not None and is_injected(observed.deployment):
        try:
            context.cache.put(DEPLOYMENT, await context.kube.apply(DEPLOYMENT, build_removal(observed.deployment)))
        except ConflictError:
            if await context.kube.get(DEPLOYMENT, observed.namespace, observed.name) is not None:
                raise
    if observed.config_map is not None:
        meta = observed.config_map["metadata"]
        await context.kube.delete(CONFIG_MAP, meta["namespace"], meta["name"], meta["uid"])
        context.cache.remove(CONFIG_MAP, observed.config_map)
