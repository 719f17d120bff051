"""Gather what a pass over a serving group needs."""

from collections.abc import Sequence
from functools import partial

from finetune_api.adapterdeployment import InferenceModelRewrite
from finetune_api.label_selector import has_label_keys, matches, parse_selector
from finetune_operator.cache import Cache
from finetune_operator.context import Context
from finetune_operator.kube.errors import ForbiddenError, NotFoundError
from finetune_operator.kube.kinds import (
    CONFIG_MAP,
    DEPLOYMENT_ANNOTATION,
    FINETUNE_JOB,
    INFERENCE_POOL,
    MODEL_REWRITES,
    POD,
    ROLE_LABEL,
    Key,
    Object,
)
from finetune_operator.kube.workloads import WorkloadRef, read_group
from finetune_operator.policies.analysis import AnalysisId, Outcome
from finetune_operator.policies.pod_state import ENDED_PHASES
from finetune_operator.reconcile.adapterdeployment.model import Gateway, Observed
from finetune_operator.resources.injection import AGENT_ROLE, config_map_name
from finetune_operator.resources.workloads import rules_of
from finetune_operator.resources.workloads.pods import view_pods


async def gather(key: Key, context: Context) -> Observed:
    """Gather the input of the plan. Raises ``KubeError``.

    The workload comes from the API server: before the injection it is not watched, and the cache does not know who
    owns its fields. So do pods that a selector names: the cache has only those with an agent.
    """
    _, namespace, group = key
    target, cache = read_group(group), context.cache
    resources = [
        resource
        for resource in cache.list_targeting(namespace, group)
        if not resource["metadata"].get("deletionTimestamp")
    ]
    resources.sort(key=lambda resource: (resource["metadata"]["creationTimestamp"], resource["metadata"]["name"]))
    config_map = cache.get(CONFIG_MAP, namespace, config_map_name(group))
    workload, pods = None, list[Object]()
    if config_map is not None or target.kind is not POD or any(map(_can_be_listed, resources)):
        workload, pods = await _gather_workload(namespace, target, context)
    reports = {
        pod["metadata"]["name"]: context.pod_reports.agent((namespace, pod["metadata"]["name"], pod["metadata"]["uid"]))
        for pod in pods
    }
    return Observed(
        namespace=namespace,
        target=target,
        workload=workload,
        resources=tuple(resources),
        finetune_jobs=_gather_jobs(namespace, resources, cache),
        pods=tuple(pods),
        agent_reports={pod: report for pod, report in reports.items() if report is not None},
        config_map=config_map,
        analyses=_gather_analyses(namespace, resources, context),
        gateways=await _gather_gateways(namespace, target, resources, context),
        watched_seconds=context.leadership.measure_seconds(),
    )


def _can_be_listed(adapter_deployment: Object) -> bool:
    """Return whether the API server can list pods by the selector. Older CRDs accept others, too."""
    selector = parse_selector(adapter_deployment["spec"]["target"]["selector"])
    return selector is not None and has_label_keys(selector)


async def _gather_workload(namespace: str, target: WorkloadRef, context: Context) -> tuple[Object | None, list[Object]]:
    """Gather the workload, and those of its pods that have an agent."""
    kind = target.kind
    if kind is POD:
        listed, _ = await context.kube.list(POD, namespace, labels=target.name)
        living = [pod for pod in listed if _is_living(pod)]
        workload = view_pods(namespace, target.name, living)
    else:
        workload = await context.kube.get(kind, namespace, target.name)
        agents = context.cache.list_labelled(POD, namespace, ROLE_LABEL, AGENT_ROLE)
        living = [pod for pod in agents if _is_living(pod) and _is_annotated(pod, target)]
    return workload, [pod for pod in living if rules_of(kind).owns(target.name, pod)]


def _gather_jobs(namespace: str, adapter_deployments: Sequence[Object], cache: Cache) -> dict[str, Object]:
    """Gather the FineTuneJobs that AdapterDeployments name, or choose by labels."""
    sources = [resource["spec"]["adapter"] for resource in adapter_deployments]
    names = {source["fineTuneJobRef"]["name"] for source in sources if "fineTuneJobRef" in source}
    jobs = [cache.get(FINETUNE_JOB, namespace, name) for name in names]
    for selector in (parse_selector(source["selector"]) for source in sources if "selector" in source):
        if selector is not None:
            jobs += cache.list_selected(namespace, partial(matches, selector))
    return {job["metadata"]["name"]: job for job in jobs if job is not None}


def _gather_analyses(
    namespace: str, resources: Sequence[Object], context: Context
) -> dict[str, tuple[AnalysisId, Outcome]]:
    names = [resource["metadata"]["name"] for resource in resources]
    newest = {name: context.analyses.find((namespace, name)) for name in names}
    return {name: analysis for name, analysis in newest.items() if analysis is not None}


async def _gather_gateways(
    namespace: str, target: WorkloadRef, resources: Sequence[Object], context: Context
) -> dict[str, Gateway]:
    """Gather what the gateways of AdapterDeployments with ``canary.traffic`` follow."""
    gateways: dict[str, Gateway] = {}
    for resource in resources:
        canary = resource["spec"].get("strategy", {}).get("canary", {})
        reference = canary.get("traffic", {}).get("inferenceModelRewrite")
        if reference is not None:
            gateways[resource["metadata"]["name"]] = await _gather_gateway(namespace, target, reference, context)
    return gateways


async def _gather_gateway(namespace: str, target: WorkloadRef, reference: Object, context: Context) -> Gateway:
    group = reference.get("group", InferenceModelRewrite.model_fields["group"].default)
    if group not in MODEL_REWRITES or not context.settings.model_rewrites:
        return Gateway()
    try:
        rewrites, _ = await context.kube.list(MODEL_REWRITES[group], namespace)
        pool = await context.kube.get(INFERENCE_POOL, namespace, reference["poolRef"]["name"])
    except NotFoundError:
        return Gateway(problem=f"the cluster has no InferenceModelRewrite of group {group}")
    except ForbiddenError as error:
        return Gateway(problem=error.message)
    return Gateway(tuple(rewrites), pool, await _list_other_pods(namespace, target, pool, context))


async def _list_other_pods(
    namespace: str, target: WorkloadRef, pool: Object | None, context: Context
) -> tuple[str, ...]:
    """List the pods that an InferencePool chooses and the target does not have."""
    labels = (pool or {}).get("spec", {}).get("selector", {}).get("matchLabels") or {}
    if not labels:
        return ()
    selector = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
    pods, _ = await context.kube.list(POD, namespace, labels=selector)
    owns = rules_of(target.kind).owns
    return tuple(pod["metadata"]["name"] for pod in pods if _is_living(pod) and not owns(target.name, pod))


def _is_annotated(pod: Object, target: WorkloadRef) -> bool:
    """Return whether the pod's template is the one that the operator has changed.

    Anybody may write the annotation, so the workload must also control the pod.
    """
    return (pod["metadata"].get("annotations") or {}).get(DEPLOYMENT_ANNOTATION) == target.group


def _is_living(pod: Object) -> bool:
    """Return whether the pod runs, or is to run."""
    return not pod["metadata"].get("deletionTimestamp") and (pod.get("status") or {}).get("phase") not in ENDED_PHASES
