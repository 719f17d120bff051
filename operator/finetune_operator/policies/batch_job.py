"""Read the state of a batch/v1 Job. Pure."""

from finetune_operator.kube.kinds import Object


def find_end(batch_job: Object) -> Object | None:
    """Find the condition with which a Job ended for good: Complete or Failed. No pod of it follows then."""
    for condition in batch_job.get("status", {}).get("conditions", ()):
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return dict(condition)
    return None


def is_being_deleted(batch_job: Object) -> bool:
    """Return whether a Job is being deleted: the Job controller makes no pod of it any more."""
    return "deletionTimestamp" in batch_job["metadata"]


def is_suspended(batch_job: Object) -> bool:
    """Return whether a Job is suspended: it has no pod, until somebody resumes it."""
    return bool(batch_job.get("spec", {}).get("suspend"))


def find_suspender(batch_job: Object) -> str:
    """Find who suspended a Job: the field manager that wrote spec.suspend."""
    managers = [
        entry["manager"]
        for entry in batch_job["metadata"].get("managedFields", ())
        if "f:suspend" in entry.get("fieldsV1", {}).get("f:spec", {})
    ]
    return managers[-1] if managers else "somebody"


def may_still_run(batch_job: Object) -> bool:
    """Return whether the Job controller may still make a pod of a Job, now or later."""
    return find_end(batch_job) is None and not is_being_deleted(batch_job)
