"""One pass over a serving group, which is all AdapterDeployments of one inference Deployment: gather, plan, apply."""

from finetune_api.reasons import Reason
from finetune_operator import events
from finetune_operator.adapter_nudges import DEPLOYMENT_ANNOTATION
from finetune_operator.context import Context
from finetune_operator.kube.errors import ConflictError, ForbiddenError, InvalidError
from finetune_operator.kube.kinds import (
    ADAPTER_DEPLOYMENT,
    CONFIG_MAP,
    DEPLOYMENT,
    FINETUNE_JOB,
    POD,
    ROLE_LABEL,
    Key,
    Object,
)
from finetune_operator.reconcile.adapterdeployment_model import Group, GroupPlan, NewStatus, Obstacle
from finetune_operator.reconcile.adapterdeployment_plan import plan_group
from finetune_operator.reconcile.adapterdeployment_status import statuses
from finetune_operator.reconcile.result import Result
from finetune_operator.resources.desired_state import STATE_ANNOTATION, is_written, state_digest
from finetune_operator.resources.injection import AGENT_ROLE, config_map_name, is_applied, is_injected, removal


async def reconcile(key: Key, context: Context) -> Result:
    """Raises ``KubeError`` for what may be better at the next try."""
    group = await gather(key, context)
    plan = plan_group(group, context.settings)
    if plan.remove:
        await _remove(group, context)
        return Result()
    if plan.config_map is not None and not is_written(group.config_map, plan.config_map):
        context.store.put(CONFIG_MAP, await context.kube.apply(CONFIG_MAP, plan.config_map))
    problem = await _inject(group, plan, context)
    await _refresh_pods(group, plan, context)
    for status in statuses(group, plan, problem, context.now()):
        await _write(status, context)
    return Result(plan.requeue_after)


async def gather(key: Key, context: Context) -> Group:
    """Read the group. The Deployment comes from the API server: who owns its fields is not in the cache, and before the injection
    it is not watched.
    """
    _, namespace, name = key
    store = context.store
    adapters = [
        item
        for item in store.all(ADAPTER_DEPLOYMENT, namespace)
        if item["spec"]["target"]["deploymentRef"]["name"] == name and not item["metadata"].get("deletionTimestamp")
    ]
    adapters.sort(key=lambda item: (item["metadata"]["creationTimestamp"], item["metadata"]["name"]))
    deployment = await context.kube.get(DEPLOYMENT, namespace, name)
    pods = [pod for pod in store.labelled(POD, namespace, ROLE_LABEL, AGENT_ROLE) if _belongs(pod, name)]
    reports = {
        pod["metadata"]["name"]: context.reports.agent((namespace, pod["metadata"]["name"], pod["metadata"]["uid"]))
        for pod in pods
    }
    return Group(
        namespace=namespace,
        name=name,
        deployment=deployment,
        adapters=tuple(adapters),
        jobs={job["metadata"]["name"]: job for job in store.all(FINETUNE_JOB, namespace)},
        pods=tuple(pods),
        reports={name: timed.report for name, timed in reports.items() if timed is not None},
        config_map=store.get(CONFIG_MAP, namespace, config_map_name(name)),
    )


def _belongs(pod: Object, deployment: str) -> bool:
    """Whether the pod is a living one of this Deployment: an annotation alone is not believed, its ReplicaSet must be named after it."""
    meta = pod["metadata"]
    if (meta.get("annotations") or {}).get(DEPLOYMENT_ANNOTATION) != deployment or meta.get("deletionTimestamp"):
        return False
    if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return False
    template = (meta.get("labels") or {}).get("pod-template-hash")
    owners = [owner for owner in meta.get("ownerReferences") or [] if owner.get("controller")]
    return any(owner["kind"] == "ReplicaSet" and owner["name"] == f"{deployment}-{template}" for owner in owners)


async def _inject(group: Group, plan: GroupPlan, context: Context) -> Obstacle | None:
    """Put the agent in, if it is not there as planned. Another owner of a field is told to the user, never overruled."""
    if group.deployment is None or plan.injection is None or is_applied(group.deployment, plan.injection):
        return None
    try:
        context.store.put(DEPLOYMENT, await context.kube.apply(DEPLOYMENT, plan.injection))
    except ConflictError as error:
        if not error.causes:
            raise
        return Obstacle(Reason.FIELD_CONFLICT, _conflict(group.name, error))
    except (InvalidError, ForbiddenError) as error:
        text = f"the API server does not let the agent into Deployment {group.name!r}: {error.message}"
        return Obstacle(Reason.INJECTION_REFUSED, text)
    return None


def _conflict(deployment: str, error: ConflictError) -> str:
    fields = "; ".join(f"{cause.get('field', '?')}: {cause.get('message', '?')}" for cause in error.causes)
    return (
        f"Deployment {deployment!r} has fields that the agent needs and that someone else owns ({fields}): "
        "take them out of what that manager applies, or give them the value that the agent needs"
    )


async def _refresh_pods(group: Group, plan: GroupPlan, context: Context) -> None:
    """A changed annotation makes the kubelet bring the new ConfigMap into the pod at once, and not at its next sync."""
    if plan.config_map is None:
        return
    digest = state_digest(plan.config_map)
    for pod in group.pods:
        meta = pod["metadata"]
        if (meta.get("annotations") or {}).get(STATE_ANNOTATION) != digest:
            patch = {"metadata": {"uid": meta["uid"], "annotations": {STATE_ANNOTATION: digest}}}
            written = await context.kube.merge(POD, meta["namespace"], meta["name"], patch)
            if written is not None:
                context.store.put(POD, written)


async def _remove(group: Group, context: Context) -> None:
    """Take out what was put in: first the agent, which still reads the ConfigMap, then that."""
    if group.deployment is not None and is_injected(group.deployment):
        try:
            context.store.put(DEPLOYMENT, await context.kube.apply(DEPLOYMENT, removal(group.deployment)))
        except ConflictError:
            if await context.kube.get(DEPLOYMENT, group.namespace, group.name) is not None:
                raise
    if group.config_map is not None:
        meta = group.config_map["metadata"]
        await context.kube.delete(CONFIG_MAP, meta["namespace"], meta["name"], meta["uid"])
        context.store.remove(CONFIG_MAP, group.config_map)


async def _write(new: NewStatus, context: Context) -> None:
    """One write, and only on difference; the events after it."""
    if new.status == (new.item.get("status") or {}):
        return
    meta = new.item["metadata"]
    try:
        written = await context.kube.write_status(ADAPTER_DEPLOYMENT, new.item, new.status)
    except ConflictError:
        fresh = await context.kube.get(ADAPTER_DEPLOYMENT, meta["namespace"], meta["name"])
        if fresh is not None:
            context.store.put(ADAPTER_DEPLOYMENT, fresh)
        raise
    if written is None:
        return
    context.store.put(ADAPTER_DEPLOYMENT, written)
    for note in new.notes:
        await events.post(ADAPTER_DEPLOYMENT, new.item, note, context)
