"""Read the state of a batch/v1 Job. Pure."""

from finetune_operator.kube.kinds import Object, is_being_deleted
from finetune_operator.kube.ownership import SUSPEND_PATH, find_entries

SHAPE = {"parallelism": 1, "backoffLimit": 0}
"""Fields of a Job that anybody may change later, with the values that our Jobs have."""


def list_edits(batch_job: Object) -> list[str]:
    """List the changed fields because of which a Job repeats what failed, or has another number of pods."""
    spec = batch_job.get("spec", {})
    return [f"spec.{name}: {spec[name]}" for name, value in SHAPE.items() if spec.get(name, value) != value]


def find_end(batch_job: Object) -> Object | None:
    """Find the condition with which a Job ended for good: Complete or Failed. No pod of it follows then."""
    for condition in batch_job.get("status", {}).get("conditions", ()):
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return dict(condition)
    return None


def is_suspended(batch_job: Object) -> bool:
    """Return whether a Job is suspended: it has no pod, until somebody resumes it."""
    return bool(batch_job.get("spec", {}).get("suspend"))


def find_suspender(batch_job: Object) -> str:
    """Find who suspended a Job: the field manager that wrote spec.suspend."""
    entries = find_entries(batch_job, SUSPEND_PATH)
    return str(entries[-1]["manager"]) if entries else "somebody"


def may_still_run(batch_job: Object) -> bool:
    """Return whether the Job controller may still make a pod of a Job, now or later."""
    return find_end(batch_job) is None and not is_being_deleted(batch_job)
