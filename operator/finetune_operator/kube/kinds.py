"""Define the kinds that the operator uses, and the labels and annotations of our objects."""

from dataclasses import dataclass
from typing import Any

from finetune_api import GROUP, VERSION

Object = dict[str, Any]
"""An API object as JSON."""
Key = tuple[str, str, str]
"""Kind, namespace and name."""

FIELD_MANAGER = "finetune-operator"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
JOB_LABEL = f"{GROUP}/finetunejob"
"""Annotation and label of a FineTuneJob's Jobs and pods: its name; the label's value is shortened if it is too long."""
ROLE_LABEL = f"{GROUP}/role"
"""Label of every watched object that is not of our own kinds. Values: preflight, trainer, merge and clean-up (Jobs,
pods), agent (inference pods), injected (their workloads) and desired-state (ConfigMaps)."""
ATTEMPT_LABEL = f"{GROUP}/attempt"
"""Label of Jobs and pods: number of the Job among those of its role. Pods of a trainer's Job, which replace one
another, have the same number, though each of them is an attempt of its own."""
DIGEST_LABEL = f"{GROUP}/preflight-digest"
"""Label of Jobs of preflights and trainers: digest of what decides the preflight (``compute_preflight_digest``)."""
JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
"""Label that the Job controller gives to every pod of a Job."""
DISRUPTION_CONDITION = "DisruptionTarget"
"""Condition of a pod that Kubernetes takes away: by preemption or eviction, or because its node goes down."""
DEPLOYMENT_ANNOTATION = f"{GROUP}/deployment"
"""Annotation of ConfigMaps and pods of a serving group: name of the group."""
SERVING_GROUP = "ServingGroup"
"""Kind in the key of a serving group: all AdapterDeployments of one workload, a Deployment for example."""


@dataclass(frozen=True)
class Kind:
    """One resource of the API."""

    name: str
    group: str
    version: str
    plural: str

    @property
    def api_version(self) -> str:
        """Return for example ``batch/v1``, or ``v1`` for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """Return the path below the server's address."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root] + ([f"namespaces/{namespace}"] if namespace else []) + [self.plural]
        return "/".join(parts + [part for part in (name, subresource) if part])


FINETUNE_JOB = Kind("FineTuneJob", GROUP, VERSION, "finetunejobs")
ADAPTER_DEPLOYMENT = Kind("AdapterDeployment", GROUP, VERSION, "adapterdeployments")
JOB = Kind("Job", "batch", "v1", "jobs")
CRON_JOB = Kind("CronJob", "batch", "v1", "cronjobs")
POD = Kind("Pod", "", "v1", "pods")
CONFIG_MAP = Kind("ConfigMap", "", "v1", "configmaps")
DEPLOYMENT = Kind("Deployment", "apps", "v1", "deployments")
STATEFUL_SET = Kind("StatefulSet", "apps", "v1", "statefulsets")
EVENT = Kind("Event", "events.k8s.io", "v1", "events")
LEASE = Kind("Lease", "coordination.k8s.io", "v1", "leases")
ANALYSIS_TEMPLATE = Kind("AnalysisTemplate", "argoproj.io", "v1alpha1", "analysistemplates")
ANALYSIS_RUN = Kind("AnalysisRun", "argoproj.io", "v1alpha1", "analysisruns")
"""Argo Rollouts' kinds, which a cluster need not have."""
INFERENCE_POOL = Kind("InferencePool", "inference.networking.k8s.io", "v1", "inferencepools")
MODEL_REWRITES = {
    group: Kind("InferenceModelRewrite", group, "v1alpha2", "inferencemodelrewrites")
    for group in ("llm-d.ai", "inference.networking.x-k8s.io")
}
"""Kinds of the Gateway API Inference Extension, which a cluster need not have; the rewrite by its group."""
DISCOVERY = Kind("Discovery", "", "", "discovery")
"""Documents in which the API server describes itself; not a resource."""
TOKEN_REVIEW = Kind("TokenReview", "authentication.k8s.io", "v1", "tokenreviews")

CUSTOM = (FINETUNE_JOB, ADAPTER_DEPLOYMENT)
"""Our own kinds, which are watched without a selector."""
LABELLED = (JOB, POD, CONFIG_MAP, DEPLOYMENT, STATEFUL_SET)
"""Kinds that are watched only where ``ROLE_LABEL`` is set, by a selector of the API server."""
WATCHED = CUSTOM + LABELLED
"""All watched kinds. Ours are listed first, so that a status never names a child that a later list lacks."""


def selector(kind: Kind) -> str | None:
    """Return the label selector with which a kind is listed and watched."""
    return ROLE_LABEL if kind in LABELLED else None


def key_of(kind: Kind, resource: Object) -> Key:
    """Return the key of an object."""
    meta = resource["metadata"]
    return kind.name, meta.get("namespace", ""), meta["name"]


def owner_reference(kind: Kind, owner: Object) -> Object:
    """Return the ``ownerReferences`` entry of a child of this owner."""
    meta = owner["metadata"]
    return {
        "apiVersion": kind.api_version,
        "kind": kind.name,
        "name": meta["name"],
        "uid": meta["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def adapter_deployment_owner(name: str, uid: str) -> Object:
    """Return the ``ownerReferences`` entry of an AdapterDeployment's child.

    It has no ``blockOwnerDeletion``, for which OpenShift asks a right to the owner's finalizers.
    """
    return {
        "apiVersion": ADAPTER_DEPLOYMENT.api_version,
        "kind": ADAPTER_DEPLOYMENT.name,
        "name": name,
        "uid": uid,
        "controller": True,
    }


def finetune_job_of(resource: Object) -> str | None:
    """Return the name of the FineTuneJob of a Job or pod, according to its annotation."""
    name: str | None = resource["metadata"].get("annotations", {}).get(JOB_LABEL)
    return name


def is_being_deleted(resource: Object) -> bool:
    """Return whether the object is being deleted. It stays while it has a finalizer, and gets no new children."""
    return "deletionTimestamp" in resource["metadata"]


def controller_uid(resource: Object) -> str | None:
    """Return the uid of the object that controls this one."""
    for reference in resource["metadata"].get("ownerReferences", ()):
        if reference.get("controller"):
            return str(reference["uid"])
    return None
