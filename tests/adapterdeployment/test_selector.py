"""adapter.selector: an AdapterDeployment follows the newest Succeeded FineTuneJob of a label, and never goes back."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_api.adapterdeployment import JobIdentity
from finetune_api.core_v1.selectors import LabelSelector
from finetune_api.label_selector import format_selector, matches
from finetune_api.reasons import Reason
from finetune_operator.cache import Cache
from finetune_operator.enqueue import find_serving_groups
from finetune_operator.kube.kinds import ADAPTER_DEPLOYMENT, FINETUNE_JOB, SERVING_GROUP, Object
from finetune_operator.policies.newest_job import FinishedJob, choose_newest
from finetune_operator.reconcile.adapterdeployment.model import Observed
from tests.adapterdeployment.groups import (
    V1,
    V2,
    V3,
    adapter,
    add_reports,
    deployment,
    edit,
    group,
    job,
    make_pass,
    read_conditions,
    read_entry,
    uri,
)

BOT = {"selector": {"matchLabels": {"app": "bot"}}}
BAD = {"state": "Refused", "reason": Reason.PROOF_FAILED, "message": "only 3% of its effect is there"}


def trained(name: str, digest: str, completed_at: str, labels: Object | None = None) -> Object:
    """Return a FineTuneJob with an adapter."""
    job_object = job(uid=f"uid-{name}", digest=digest, uri=uri(digest))
    job_object["status"]["conditions"][0]["lastTransitionTime"] = completed_at
    job_object["metadata"] |= {
        "name": name,
        "labels": labels or {"app": "bot"},
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    return job_object


def training(name: str, created: str = "2026-01-01T00:00:00Z", **fields: Any) -> Object:
    job_object = job(ready=False, uid=f"uid-{name}", **fields)
    job_object["metadata"] |= {"name": name, "labels": {"app": "bot"}, "creationTimestamp": created}
    return job_object


def follow(*jobs: Object, source: Object = BOT, before: Observed | None = None) -> Observed:
    """Make a pass with these jobs in the namespace."""
    observed = before or group(adapter(adapter=source))
    return make_pass(replace(observed, finetune_jobs={item["metadata"]["name"]: item for item in jobs}))


def read_status(observed: Observed) -> Object:
    status: Object = observed.resources[0]["status"]
    return status


def read_message(observed: Observed) -> str:
    return next(str(item["message"]) for item in read_status(observed)["conditions"] if item["type"] == "Accepted")


ONE = trained("one", V1, "2026-01-01T01:00:00Z")
TWO = trained("two", V2, "2026-01-01T02:00:00Z")
THREE = trained("three", V3, "2026-01-01T03:00:00Z")
SERVED = make_pass(add_reports(follow(ONE), "abc", V1, V1))


def test_the_newest_that_succeeded_is_served_with_its_place_and_credentials() -> None:
    observed = follow(TWO, ONE, training("four"), trained("other", V3, "2026-01-01T09:00:00Z", {"app": "cat"}))
    assert read_entry(observed)[0] == V2
    assert read_status(observed)["desired"] == {
        "uri": uri(V2),
        "digest": V2,
        "fineTuneJob": {"name": "two", "uid": "uid-two", "completedAt": "2026-01-01T02:00:00Z", "selector": "app=bot"},
        "s3": {"endpoint": "http://s3:9000", "region": "eu"},
        "secretRef": {"name": "s3-keys"},
    }


def test_it_says_what_it_waits_for() -> None:
    observed = follow()
    assert observed.config_map is None
    assert read_conditions(observed)["Reconciling"] == ("True", "FineTuneJobNotFound")
    assert "no FineTuneJob with app=bot" in read_message(observed)
    jobs = [training(f"run-{number}", f"2026-01-0{number}T00:00:00Z") for number in (1, 2, 3, 4)]
    failed = training("run-5", "2026-01-05T00:00:00Z", stalled=True)
    observed = follow(*jobs, failed)
    assert read_conditions(observed)["Reconciling"] == ("True", "AdapterNotReady")
    assert read_message(observed) == (
        "waiting for a FineTuneJob with app=bot to succeed; there are run-5 (failed: DatasetInvalid), "
        "run-4 (Training, 40 %), run-3 (Training, 40 %), and 2 more"
    )


def test_a_newer_one_is_taken_by_a_rollout_of_its_own() -> None:
    observed = follow(ONE, TWO, before=SERVED)
    assert read_entry(observed) == (V2, V1, ["web-a"])
    assert read_status(observed)["observedGeneration"] == 1, "nobody has edited anything"


@pytest.mark.parametrize(
    "jobs",
    [[], [ONE], [ONE, trained("two", V2, "2026-01-01T02:00:00Z", {"app": "cat"})], [ONE, training("two")]],
    ids=["all are deleted", "the newest is deleted", "it lost its label", "it is trained anew"],
)
def test_nothing_goes_back(jobs: list[Object]) -> None:
    served = make_pass(add_reports(follow(ONE, TWO), "abc", V2, V2))
    observed = follow(*jobs, before=served)
    assert read_entry(observed) == (V2, None, None)
    assert read_conditions(observed)["Ready"] == ("True", "Serving")
    assert read_status(observed)["desired"] == read_status(served)["desired"]
    assert follow(*jobs, before=observed) == observed
    edited = follow(*jobs, before=edit(observed, verification={"tolerance": 0.5}))
    assert read_entry(edited) == (V2, None, None), "nor by an edit of something else"


def test_the_secret_of_the_spec_counts_also_when_the_job_is_gone() -> None:
    served = make_pass(add_reports(follow(ONE), "abc", V1, V1))
    observed = follow(before=edit(served, adapter={**BOT, "secretRef": {"name": "s3-keys-2"}}))
    assert read_status(observed)["desired"]["secretRef"] == {"name": "s3-keys-2"}


def test_the_target_is_checked_also_for_the_job_that_is_followed_already() -> None:
    small = deployment(args=["--model=/m", "--enable-lora", "--max-lora-rank=4"])
    observed = follow(ONE, before=replace(SERVED, workload=small))
    assert read_conditions(observed)["Accepted"] == ("False", "RankTooHigh")


def test_another_selector_begins_again() -> None:
    cat = trained("cat", V3, "2025-12-31T00:00:00Z", {"app": "cat"})
    observed = follow(ONE, TWO, cat, before=edit(SERVED, adapter={"selector": {"matchLabels": {"app": "cat"}}}))
    assert read_entry(observed)[0] == V3


def test_a_version_that_was_rolled_back_is_not_taken_again_and_the_next_one_is() -> None:
    rolling_out = follow(ONE, TWO, before=SERVED)
    observed = make_pass(make_pass(add_reports(rolling_out, "a", V2, V1, **BAD)))
    assert read_entry(observed)[0] == V1
    for change in ({"verification": {"tolerance": 0.5}}, {"suspend": True}, {"suspend": None}):
        observed = make_pass(edit(observed, **change))
        assert read_status(observed)["rollback"]["from"]["digest"] == V2
        assert read_entry(observed)[0] == V1
    without_job = follow(ONE, before=observed)
    assert read_status(without_job)["rollback"]["from"]["fineTuneJob"]["name"] == "two"
    assert read_conditions(without_job)["Stalled"] == ("True", "RolledBack")
    reselected = follow(ONE, TWO, before=edit(without_job, adapter={"selector": {"matchExpressions": [EXISTS]}}))
    assert read_entry(reselected)[0] == V1, "nor by another selector that chooses it"
    following = follow(ONE, TWO, THREE, before=reselected)
    assert read_entry(following)[0] == V3
    assert "Stalled" not in read_conditions(following)


EXISTS = {"key": "app", "operator": "Exists"}
LABELS = {"app": "bot", "team": "a"}


@pytest.mark.parametrize(
    ("selector", "text", "expected"),
    [
        ({"matchLabels": {"team": "a", "app": "bot"}}, "app=bot,team=a", True),
        ({"matchLabels": {"app": "cat"}}, "app=cat", False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["cat", "bot"]}]}, "app in (bot,cat)", True),
        ({"matchExpressions": [{"key": "x", "operator": "In", "values": ["y"]}]}, "x in (y)", False),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["bot"]}]}, "app notin (bot)", False),
        ({"matchExpressions": [{"key": "x", "operator": "NotIn", "values": ["y"]}]}, "x notin (y)", True),
        ({"matchExpressions": [EXISTS]}, "app", True),
        ({"matchExpressions": [{"key": "x", "operator": "Exists"}]}, "x", False),
        ({"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}, EXISTS]}, "!x,app", True),
        ({"matchLabels": {"app": "bot"}, "matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]},
         "app=bot,!team", False),
    ],
)  # fmt: skip
def test_selectors(selector: Object, text: str, expected: bool) -> None:
    parsed = LabelSelector.model_validate(selector)
    assert matches(parsed, LABELS) is expected
    assert format_selector(parsed) == text


def finished(name: str, hour: int, digest: str = V1) -> FinishedJob:
    return FinishedJob(JobIdentity(name=name, uid=name, completed_at=f"2026-01-01T{hour:02}:00:00Z"), digest)


A1, B1, A2 = finished("a", 1), finished("b", 1), finished("a", 2)


@pytest.mark.parametrize(
    ("jobs", "served", "bad", "chosen"),
    [
        ([], None, [], None),
        ([A1, A2], None, [], A2),
        ([B1, A1], None, [], B1),
        ([A1, B1], A1, [], B1),
        ([A1], B1, [], None),
        ([B1], A2, [], None),
        ([A1, finished("c", 3, V2)], A1, [V2], None),
        ([A1, finished("c", 3, V2), A2], A1, [V2], A2),
    ],
)
def test_the_newest_by_time_then_by_name(
    jobs: list[FinishedJob], served: FinishedJob | None, bad: list[str], chosen: FinishedJob | None
) -> None:
    assert choose_newest(jobs, served.identity if served is not None else None, bad) == chosen


@pytest.mark.parametrize(
    ("source", "is_concerned"),
    [
        (BOT, True),
        ({"selector": {"matchLabels": {"app": "cat"}}}, False),
        ({"selector": {"matchLabels": "app=bot"}}, False),
        ({"fineTuneJobRef": {"name": "one"}}, True),
        ({"fineTuneJobRef": {"name": "two"}}, False),
    ],
)
def test_a_job_concerns_those_that_choose_or_name_it(source: Object, is_concerned: bool) -> None:
    cache = Cache()
    user = adapter(adapter=source)
    cache.put(ADAPTER_DEPLOYMENT, user)
    assert find_serving_groups(FINETUNE_JOB, ONE, cache) == ([(SERVING_GROUP, "team", "web")] if is_concerned else [])
