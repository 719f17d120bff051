"""Which warning is the newest word about an object."""

from typing import Any

from finetune_operator.warning_events import select_newest


def event(uid: str, note: str, minute: int, kind: str = "Pod", reason: str = "Failed") -> dict[str, Any]:
    regarding = {"kind": kind, "uid": uid}
    return {"regarding": regarding, "note": note, "reason": reason, "eventTime": f"2026-01-01T00:{minute:02}:00Z"}


def test_the_newest_event_about_each_object_counts() -> None:
    events = [event("a", "newer", 2), event("a", "older", 1), event("b", "other\n", 0)]
    assert select_newest(events) == {"a": "newer", "b": "other"}


def test_of_a_job_only_a_refused_pod_explains_why_there_is_none() -> None:
    refused = event("job", "pods is forbidden: exceeded quota", 1, "Job", "FailedCreate")
    failed = event(
        "job", "Container trainer failed with exit code 31 matching FailJob rule", 2, "Job", "PodFailurePolicy"
    )
    assert select_newest([refused, failed]) == {"job": "pods is forbidden: exceeded quota"}
    assert select_newest([failed]) == {}
