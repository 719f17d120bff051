"""Conditions: transition times, and the three that GitOps tools read."""

from datetime import timedelta

from finetune_api.conditions import ConditionType
from finetune_api.limits import STATUS_MESSAGE_CHARACTERS
from finetune_api.reasons import Reason
from finetune_api.timestamps import format_timestamp
from finetune_operator.conditions import Conditions
from tests.operator.fake_cluster import NOW

READY = ConditionType.READY


def test_the_transition_time_changes_with_the_status_only() -> None:
    first = Conditions([], 1, NOW)
    first.set(READY, "Unknown", Reason.PENDING, "one")
    later = Conditions(first.as_json(), 2, NOW + timedelta(hours=1))
    later.set(READY, "Unknown", Reason.TRAINING, "two")
    (condition,) = later.as_json()
    assert (condition["lastTransitionTime"], condition["reason"], condition["observedGeneration"]) == (
        format_timestamp(NOW),
        "Training",
        2,
    )
    later.set(READY, "True", Reason.VERIFIED, "three")
    (changed,) = later.as_json()
    assert changed["lastTransitionTime"] == format_timestamp(NOW + timedelta(hours=1))


def test_the_placeholder_of_the_crd_is_not_a_transition() -> None:
    default = {
        "type": "Ready",
        "status": "Unknown",
        "reason": "Pending",
        "message": "",
        "lastTransitionTime": "1970-01-01T00:00:00Z",
    }
    conditions = Conditions([default], 1, NOW)
    conditions.set_progressing(Reason.PREFLIGHT_RUNNING, "checking")
    assert {item["lastTransitionTime"] for item in conditions.as_json()} == {format_timestamp(NOW)}


def test_reconciling_and_stalled_are_there_only_while_true() -> None:
    conditions = Conditions([], 1, NOW)

    def shown() -> dict[str, str]:
        return {item["type"]: item["status"] for item in conditions.as_json()}

    conditions.set_progressing(Reason.TRAINING, "")
    assert shown() == {"Ready": "Unknown", "Reconciling": "True"}
    conditions.set_stalled(Reason.TRAINER_ERROR, "")
    assert shown() == {"Ready": "False", "Stalled": "True"}
    conditions.set_progressing(Reason.TRAINING, "")
    assert shown() == {"Ready": "Unknown", "Reconciling": "True"}
    conditions.set_ready(Reason.VERIFIED, "")
    assert shown() == {"Ready": "True"}


def test_a_long_message_is_cut_visibly() -> None:
    conditions = Conditions([], 1, NOW)
    conditions.set(READY, "False", Reason.TRAINER_ERROR, "x" * 10_000)
    message = conditions.as_json()[0]["message"]
    assert len(message) == STATUS_MESSAGE_CHARACTERS
    assert message.endswith("…")
