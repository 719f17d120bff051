"""Gather what a pass over a serving group needs."""

from collections.abc import Iterable, Sequence

from finetune_operator.cache import Cache
from finetune_operator.context import Context
from finetune_operator.kube.kinds import (
    ADAPTER_DEPLOYMENT,
    CONFIG_MAP,
    DEPLOYMENT,
    DEPLOYMENT_ANNOTATION,
    FINETUNE_JOB,
    POD,
    ROLE_LABEL,
    Key,
    Object,
)
from finetune_operator.policies.pod_state import ENDED_PHASES
from finetune_operator.reconcile.adapterdeployment.model import Observed
from finetune_operator.resources.injection import AGENT_ROLE, config_map_name


async def gather(key: Key, context: Context) -> Observed:
    """Gather the input of the plan. Raises ``KubeError``.

    The Deployment comes from the API server: before the injection it is not watched, and the cache does not know who
    owns its fields.
    """
    _, namespace, name = key
    cache = context.cache
    resources = [
        resource
        for resource in cache.list_all(ADAPTER_DEPLOYMENT, namespace)
        if resource["spec"]["target"]["deploymentRef"]["name"] == name
        and not resource["metadata"].get("deletionTimestamp")
    ]
    resources.sort(key=lambda resource: (resource["metadata"]["creationTimestamp"], resource["metadata"]["name"]))
    deployment = await context.kube.get(DEPLOYMENT, namespace, name)
    pods = [pod for pod in cache.list_labelled(POD, namespace, ROLE_LABEL, AGENT_ROLE) if _belongs(pod, name)]
    reports = {
        pod["metadata"]["name"]: context.pod_reports.agent((namespace, pod["metadata"]["name"], pod["metadata"]["uid"]))
        for pod in pods
    }
    return Observed(
        namespace=namespace,
        name=name,
        deployment=deployment,
        resources=tuple(resources),
        finetune_jobs=_gather_jobs(namespace, resources, cache),
        pods=tuple(pods),
        agent_reports={pod: report for pod, report in reports.items() if report is not None},
        config_map=cache.get(CONFIG_MAP, namespace, config_map_name(name)),
        watched_seconds=context.leadership.measure_seconds(),
    )


def _gather_jobs(namespace: str, adapter_deployments: Sequence[Object], cache: Cache) -> dict[str, Object]:
    """Gather the FineTuneJobs that AdapterDeployments name; all of the namespace where one has a selector."""
    sources = [resource["spec"]["adapter"] for resource in adapter_deployments]
    if any("selector" in source for source in sources):
        jobs: Iterable[Object | None] = cache.list_all(FINETUNE_JOB, namespace)
    else:
        names = {source["fineTuneJobRef"]["name"] for source in sources if "fineTuneJobRef" in source}
        jobs = (cache.get(FINETUNE_JOB, namespace, name) for name in names)
    return {job["metadata"]["name"]: job for job in jobs if job is not None}


def _belongs(pod: Object, deployment: str) -> bool:
    """Return whether the pod is a living one of this Deployment.

    Anybody may write the annotation, so the pod's ReplicaSet must have the name that the Deployment gives it.
    """
    meta = pod["metadata"]
    if (meta.get("annotations") or {}).get(DEPLOYMENT_ANNOTATION) != deployment or meta.get("deletionTimestamp"):
        return False
    if (pod.get("status") or {}).get("phase") in ENDED_PHASES:
        return False
    template = (meta.get("labels") or {}).get("pod-template-hash")
    owners = [owner for owner in meta.get("ownerReferences") or [] if owner.get("controller")]
    return any(owner["kind"] == "ReplicaSet" and owner["name"] == f"{deployment}-{template}" for owner in owners)
