"""Build the batch/v1 Jobs of a FineTuneJob: for the preflight, for each attempt, and for the clean-up."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.finetunejob import CachedModel, FineTuneJob
from finetune_operator.kube.kinds import (
    ATTEMPT_LABEL,
    FIELD_MANAGER,
    FINETUNE_JOB,
    JOB_LABEL,
    MANAGED_BY_LABEL,
    ROLE_LABEL,
    Object,
    owner_reference,
)
from finetune_operator.resources.mounts import build_model_cache
from finetune_operator.resources.names import CLEAN_UP, PREFLIGHT, TRAINER, job_name, short
from finetune_operator.resources.pods import build_clean_up_pod, build_preflight_pod, build_trainer_pod
from finetune_operator.settings import Settings

DEFAULT_CONTAINER_ANNOTATION = "kubectl.kubernetes.io/default-container"
"""Container that ``kubectl logs`` shows, also beside sidecars that somebody injects."""
TRAINER_COMMAND = ["python", "-m", "finetune_trainer", "train"]


@dataclass(frozen=True)
class ResolvedModel:
    """The model as the preflight found it: the commit of an hf:// model, and where it is in the cache."""

    revision: str | None = None
    cached: CachedModel | None = None


def build_preflight_job(resource: Object, job: FineTuneJob, attempt: int, settings: Settings) -> Object:
    """Build the Job that checks, without a GPU and in the small image, what the trainer will need."""
    container = {
        "name": PREFLIGHT,
        "image": settings.operator_image,
        "command": ["python", "-m", "finetune_trainer", "preflight"],
        "env": _build_environment(job, attempt, ResolvedModel(), settings),
    }
    cache = build_model_cache(job.spec, read_only=False)
    return _build_job(resource, job, PREFLIGHT, attempt, build_preflight_pod(job.spec, container, settings, cache))


def build_clean_up_job(resource: Object, job: FineTuneJob, attempt: int, settings: Settings) -> Object:
    """Build the Job that deletes, in the small image, what the job has in S3."""
    container = {
        "name": CLEAN_UP,
        "image": settings.operator_image,
        "command": ["python", "-m", "finetune_trainer", "clean-up"],
        "env": _build_environment(job, attempt, ResolvedModel(), settings),
    }
    return _build_job(resource, job, CLEAN_UP, attempt, build_clean_up_pod(job.spec, container, settings))


def build_trainer_job(
    resource: Object,
    job: FineTuneJob,
    attempt: int,
    base: ResolvedModel,
    settings: Settings,
    adjustments: list[dict[str, str]],
    avoided_nodes: Sequence[str] = (),
) -> Object:
    """Build the Job of one attempt.

    Args:
        resource: The FineTuneJob as the API server has it: the owner.
        job: The FineTuneJob that is trained; the out-of-memory ladder may have changed its spec.
        attempt: Number of the attempt.
        base: The model as the preflight found it.
        settings: The operator's settings.
        adjustments: What the ladder changed, for the report of the run.
        avoided_nodes: Nodes that the scheduler takes only if no other one fits.
    """
    template = job.spec.pod_template
    container = {
        "name": TRAINER,
        "image": template.image or settings.trainer_image,
        "command": template.command or TRAINER_COMMAND,
        "args": template.args,
        "env": _build_environment(job, attempt, base, settings, adjustments),
    }
    pod = build_trainer_pod(job.spec, container, settings, avoided_nodes)
    return _build_job(resource, job, TRAINER, attempt, pod)


def _build_job(
    resource: Object,
    job: FineTuneJob,
    role: str,
    attempt: int,
    pod: Object,
) -> Object:
    labels = {
        MANAGED_BY_LABEL: FIELD_MANAGER,
        JOB_LABEL: short(job.metadata.name),
        ROLE_LABEL: role,
        ATTEMPT_LABEL: str(attempt),
    }
    template = job.spec.pod_template
    annotations = {JOB_LABEL: job.metadata.name}
    pod_annotations = annotations | {DEFAULT_CONTAINER_ANNOTATION: pod["containers"][0]["name"]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "namespace": job.metadata.namespace,
            "name": job_name(job.metadata.name, role, attempt),
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner_reference(FINETUNE_JOB, resource)],
        },
        "spec": {
            # An attempt is one pod. The operator, not the Job controller, decides what follows when it ends.
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "template": {
                "metadata": {"labels": template.labels | labels, "annotations": template.annotations | pod_annotations},
                "spec": pod,
            },
        },
    }


def _build_environment(
    job: FineTuneJob,
    attempt: int,
    base: ResolvedModel,
    settings: Settings,
    adjustments: Sequence[dict[str, str]] = (),
) -> list[dict[str, Any]]:
    variables = {
        "HOME": "/tmp",  # noqa: S108 -- the pod's scratch volume
        "USER": "finetune",  # for a UID that has no name in the image
        "FINETUNE_JOB": _dump_compact(job.to_json()),
        "FINETUNE_ATTEMPT": str(attempt),
        "FINETUNE_MODEL_REVISION": base.revision,
        "FINETUNE_CACHED_MODEL": _dump_compact(base.cached.to_json()) if base.cached else None,
        "FINETUNE_ADJUSTMENTS": _dump_compact(list(adjustments)) if adjustments else None,
        "FINETUNE_REPORT_URL": settings.report_url,
        "FINETUNE_SIMULATED_GPUS": "true" if settings.simulated_gpus else None,
    }
    return [{"name": name, "value": value} for name, value in variables.items() if value]


def _dump_compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
