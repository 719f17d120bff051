"""The batch/v1 Jobs of a FineTuneJob: one for the preflight, one for each attempt."""

import json
from collections.abc import Sequence
from typing import Any

from finetune_api.finetunejob import FineTuneJob
from finetune_operator.kube.kinds import (
    ATTEMPT_LABEL,
    FIELD_MANAGER,
    FINETUNE_JOB,
    JOB_LABEL,
    MANAGED_BY_LABEL,
    REVISION_ANNOTATION,
    ROLE_LABEL,
    Object,
    owner_reference,
)
from finetune_operator.resources.mounts import shared_memory, volumes
from finetune_operator.resources.names import PREFLIGHT, TRAINER, job_name, short
from finetune_operator.resources.security import container_security_context, pod_security_context
from finetune_operator.settings import Settings

PREFLIGHT_RESOURCES = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}}


def preflight_job(item: Object, job: FineTuneJob, attempt: int, settings: Settings) -> Object:
    """The CPU-only check of everything that the trainer will need; it runs in the small image."""
    container = {
        "name": PREFLIGHT,
        "image": settings.operator_image,
        "command": ["python", "-m", "finetune_trainer", "preflight"],
        "env": _environment(job, attempt, None, settings),
        "resources": PREFLIGHT_RESOURCES,
    }
    return _job(item, job, PREFLIGHT, attempt, container, {}, settings)


def trainer_job(
    item: Object,
    job: FineTuneJob,
    attempt: int,
    revision: str | None,
    settings: Settings,
    adjustments: list[dict[str, str]],
) -> Object:
    """One attempt to train. ``revision`` is the commit of an hf:// model that the preflight found; ``adjustments`` tell the trainer what the ladder changed."""
    template = job.spec.pod_template
    container = {
        "name": TRAINER,
        "image": template.image or settings.trainer_image,
        "command": ["python", "-m", "finetune_trainer", "train"],
        "env": [variable.to_json() for variable in template.env]
        + _environment(job, attempt, revision, settings, adjustments),
        "resources": _resources(job),
    }
    pod = {
        "nodeSelector": template.node_selector,
        "tolerations": [toleration.to_json() for toleration in template.tolerations],
        "priorityClassName": template.priority_class_name,
        "runtimeClassName": template.runtime_class_name,
        "terminationGracePeriodSeconds": template.termination_grace_period_seconds,
    }
    built = _job(
        item, job, TRAINER, attempt, container, {name: value for name, value in pod.items() if value}, settings
    )
    if revision:
        built["metadata"]["annotations"][REVISION_ANNOTATION] = revision
    return built


def _job(
    item: Object,
    job: FineTuneJob,
    role: str,
    attempt: int,
    container: dict[str, Any],
    pod: dict[str, Any],
    settings: Settings,
) -> Object:
    labels = {
        MANAGED_BY_LABEL: FIELD_MANAGER,
        JOB_LABEL: short(job.metadata.name),
        ROLE_LABEL: role,
        ATTEMPT_LABEL: str(attempt),
    }
    template = job.spec.pod_template
    annotations = {JOB_LABEL: job.metadata.name}
    pod_volumes, mounts = volumes(job.spec)
    if role == TRAINER:
        more_volumes, more_mounts = shared_memory(job.spec)
        pod_volumes, mounts = pod_volumes + more_volumes, mounts + more_mounts
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "namespace": job.metadata.namespace,
            "name": job_name(job.metadata.name, role, attempt),
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner_reference(FINETUNE_JOB, item)],
        },
        "spec": {
            # An attempt is one pod: whatever ends it is decided on here, with its reason in status.
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "template": {
                "metadata": {"labels": template.labels | labels, "annotations": template.annotations | annotations},
                "spec": {
                    **pod,
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "securityContext": pod_security_context(),
                    "imagePullSecrets": [reference.to_json() for reference in template.image_pull_secrets],
                    "containers": [
                        {
                            **container,
                            "imagePullPolicy": settings.image_pull_policy,
                            "terminationMessagePolicy": "FallbackToLogsOnError",
                            "securityContext": container_security_context(),
                            "volumeMounts": mounts,
                        }
                    ],
                    "volumes": pod_volumes,
                },
            },
        },
    }


def _environment(
    job: FineTuneJob,
    attempt: int,
    revision: str | None,
    settings: Settings,
    adjustments: Sequence[dict[str, str]] = (),
) -> list[dict[str, Any]]:
    variables = {
        "HOME": "/tmp",  # noqa: S108 -- the pod's scratch volume
        "FINETUNE_JOB": _compact(job.to_json()),
        "FINETUNE_ATTEMPT": str(attempt),
        "FINETUNE_MODEL_REVISION": revision,
        "FINETUNE_ADJUSTMENTS": _compact(list(adjustments)) if adjustments else None,
        "FINETUNE_REPORT_URL": settings.report_url,
    }
    return [{"name": name, "value": value} for name, value in variables.items() if value]


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _resources(job: FineTuneJob) -> dict[str, Any]:
    """Kubernetes wants an extended resource such as a GPU in both, with the same number."""
    wanted = job.spec.resources
    gpus = {wanted.gpu_resource_name: str(wanted.gpus_per_node)} if wanted.gpus_per_node else {}
    return {"requests": {**wanted.requests, **gpus}, "limits": {**wanted.limits, **gpus}}
