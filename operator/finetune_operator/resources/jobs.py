"""Build the batch/v1 Jobs of a FineTuneJob: for preflight, trainer, merge and clean-up."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.finetunejob import CachedModel, FineTuneJob, TrainingChoice
from finetune_api.reasons import FINAL_EXIT_CODES
from finetune_operator.kube.kinds import (
    ATTEMPT_LABEL,
    DIGEST_LABEL,
    DISRUPTION_CONDITION,
    FIELD_MANAGER,
    FINETUNE_JOB,
    JOB_LABEL,
    MANAGED_BY_LABEL,
    ROLE_LABEL,
    Object,
    owner_reference,
)
from finetune_operator.resources.mounts import build_model_cache
from finetune_operator.resources.names import CLEAN_UP, MERGE, PREFLIGHT, TRAINER, job_name, short
from finetune_operator.resources.pods import build_clean_up_pod, build_merge_pod, build_preflight_pod, build_trainer_pod
from finetune_operator.resources.preflight_digest import compute_preflight_digest
from finetune_operator.settings import Settings

DEFAULT_CONTAINER_ANNOTATION = "kubectl.kubernetes.io/default-container"
"""Container that ``kubectl logs`` shows, also if somebody injects sidecars."""
TRAINER_COMMAND = ["python", "-m", "finetune_trainer", "train"]
POD_FAILURE_POLICY: dict[str, Any] = {
    "rules": [
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": TRAINER, "operator": "In", "values": list(FINAL_EXIT_CODES)},
        },
        {"action": "Ignore", "onPodConditions": [{"type": DISRUPTION_CONDITION, "status": "True"}]},
    ]
}
"""Policy by which the Job controller replaces a trainer's pod that is taken away, unless the trainer ended by itself.

The first rule that fits counts. Any other end of a pod ends the Job, because its backoffLimit is 0.
"""


@dataclass(frozen=True)
class ResolvedModel:
    """The model as the preflight resolved it: the commit of an hf:// model, and its place in the cache."""

    revision: str | None = None
    cached: CachedModel | None = None


def build_preflight_job(resource: Object, job: FineTuneJob, attempt: int, settings: Settings) -> Object:
    """Build the Job that checks the FineTuneJob, without a GPU and in the small image."""
    container = {
        "name": PREFLIGHT,
        "image": settings.operator_image,
        "command": ["python", "-m", "finetune_trainer", "preflight"],
        "env": _build_environment(job, attempt, ResolvedModel(), settings),
    }
    cache = build_model_cache(job.spec, read_only=False)
    pod = build_preflight_pod(job.spec, container, settings, cache)
    return _label_digest(_build_job(resource, job, PREFLIGHT, attempt, pod), resource, settings)


def build_clean_up_job(resource: Object, job: FineTuneJob, attempt: int, settings: Settings) -> Object:
    """Build the Job that deletes the FineTuneJob's objects in S3, in the small image."""
    container = {
        "name": CLEAN_UP,
        "image": settings.operator_image,
        "command": ["python", "-m", "finetune_trainer", "clean-up"],
        "env": _build_environment(job, attempt, ResolvedModel(), settings),
    }
    return _build_job(resource, job, CLEAN_UP, attempt, build_clean_up_pod(job.spec, container, settings))


def build_merge_job(
    resource: Object, job: FineTuneJob, attempt: int, base: ResolvedModel, settings: Settings, needed_bytes: int | None
) -> Object:
    """Build the Job that merges the finished adapter into its base, without a GPU, in the trainer's image.

    The image of a trainer with a command of its own may lack our trainer.
    """
    template = job.spec.pod_template
    container = {
        "name": MERGE,
        "image": settings.trainer_image if template.command else template.image or settings.trainer_image,
        "command": ["python", "-m", "finetune_trainer", "merge"],
        "env": _build_environment(job, attempt, base, settings),
    }
    pod = build_merge_pod(job.spec, container, settings, needed_bytes)
    return _build_job(resource, job, MERGE, attempt, pod)


def build_trainer_job(
    resource: Object,
    job: FineTuneJob,
    number: int,
    base: ResolvedModel,
    settings: Settings,
    adjustments: list[dict[str, str]],
    avoided_nodes: Sequence[str] = (),
    choice: TrainingChoice | None = None,
) -> Object:
    """Build a Job that trains. Its pods, which replace one another, are the attempts.

    Args:
        resource: The FineTuneJob as the API server has it: the owner.
        job: The FineTuneJob that is trained; the out-of-memory ladder may have changed its spec.
        number: Number of the trainer's Job.
        base: The model as the preflight resolved it.
        settings: The operator's settings.
        adjustments: Settings that the ladder changed, for the report of the run.
        avoided_nodes: Nodes that the scheduler chooses only if no other one fits.
        choice: What an earlier attempt chose for unset fields; the job's spec has it already.
    """
    template = job.spec.pod_template
    container = {
        "name": TRAINER,
        "image": template.image or settings.trainer_image,
        "command": template.command or TRAINER_COMMAND,
        "args": template.args,
        "env": _build_environment(job, number, base, settings, adjustments, choice),
    }
    pod = build_trainer_pod(job.spec, container, settings, avoided_nodes)
    batch_job = _build_job(resource, job, TRAINER, number, pod, {"podFailurePolicy": POD_FAILURE_POLICY})
    return _label_digest(batch_job, resource, settings)


def _label_digest(batch_job: Object, resource: Object, settings: Settings) -> Object:
    """Add the label by which other jobs find this preflight, and what became of the training after it."""
    digest = compute_preflight_digest(resource["spec"], settings)
    if digest is not None:
        batch_job["metadata"]["labels"][DIGEST_LABEL] = digest
    return batch_job


def _build_job(
    resource: Object,
    job: FineTuneJob,
    role: str,
    number: int,
    pod: Object,
    policy: Object | None = None,
) -> Object:
    labels = {
        MANAGED_BY_LABEL: FIELD_MANAGER,
        JOB_LABEL: short(job.metadata.name),
        ROLE_LABEL: role,
        ATTEMPT_LABEL: str(number),
    }
    template = job.spec.pod_template
    annotations = {JOB_LABEL: job.metadata.name}
    pod_annotations = annotations | {DEFAULT_CONTAINER_ANNOTATION: pod["containers"][0]["name"]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "namespace": job.metadata.namespace,
            "name": job_name(job.metadata.name, role, number),
            "labels": {**labels},
            "annotations": annotations,
            "ownerReferences": [owner_reference(FINETUNE_JOB, resource)],
        },
        "spec": {
            # The operator decides what follows a failure, and no second pod starts while one is still stopping.
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            **(policy or {}),
            "template": {
                "metadata": {"labels": template.labels | labels, "annotations": template.annotations | pod_annotations},
                "spec": pod,
            },
        },
    }


def _build_environment(
    job: FineTuneJob,
    number: int,
    base: ResolvedModel,
    settings: Settings,
    adjustments: Sequence[dict[str, str]] = (),
    choice: TrainingChoice | None = None,
) -> list[dict[str, Any]]:
    variables = {
        "HOME": "/tmp",  # noqa: S108 -- the pod's scratch volume
        "USER": "finetune",  # for a UID that has no name in the image
        "FINETUNE_JOB": _dump_compact(job.to_json()),
        "FINETUNE_ATTEMPT": str(number),
        "FINETUNE_MODEL_REVISION": base.revision,
        "FINETUNE_CACHED_MODEL": _dump_compact(base.cached.to_json()) if base.cached else None,
        "FINETUNE_ADJUSTMENTS": _dump_compact(list(adjustments)) if adjustments else None,
        "FINETUNE_TRAINING_CHOICE": _dump_compact(choice.to_json()) if choice else None,
        "FINETUNE_REPORT_URL": settings.report_url,
        "FINETUNE_SIMULATED_GPUS": "true" if settings.simulated_gpus else None,
    }
    return [{"name": name, "value": value} for name, value in variables.items() if value]


def _dump_compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
