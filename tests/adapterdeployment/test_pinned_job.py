"""A FineTuneJob that is deleted and created again does not move the adapter behind an unchanged spec."""

from dataclasses import replace

import pytest

from finetune_operator.kube.kinds import Object
from finetune_operator.reconcile.adapterdeployment.model import Observed
from finetune_operator.reconcile.adapterdeployment.plan import make_plan
from finetune_operator.reconcile.adapterdeployment.status import build_updates
from tests.adapterdeployment.groups import NOW, SETTINGS, V1, V2, adapter, group, job, uri


def make_pass(observed: Observed) -> Observed:
    """Make a pass, and write what it decided."""
    plan = make_plan(observed, NOW, SETTINGS)
    (update,) = build_updates(observed, plan, None, NOW)
    (resource,) = observed.resources
    return replace(observed, config_map=plan.config_map, resources=({**resource, "status": update.status},))


def edit(observed: Observed, **spec: object) -> Observed:
    """Edit the spec of the AdapterDeployment."""
    (resource,) = observed.resources
    meta = {**resource["metadata"], "generation": resource["metadata"]["generation"] + 1}
    return replace(observed, resources=({**resource, "metadata": meta, "spec": {**resource["spec"], **spec}},))


def read_condition(observed: Observed, kind: str) -> tuple[str, str]:
    conditions: list[Object] = observed.resources[0]["status"]["conditions"]
    return next((item["reason"], item["message"]) for item in conditions if item["type"] == kind)


def read_served(observed: Observed) -> str | None:
    state = make_plan(observed, NOW, SETTINGS).state
    return state.adapters[0].version.digest if state is not None and state.adapters else None


FIRST = make_pass(group(adapter(digest=None), finetune_jobs={"job": job()}))
OTHER = job(uid="j-2", uri=uri(V2), digest=V2)
TAKEN = {"fineTuneJobRef": {"name": "job"}, "digest": V2}


def test_the_status_says_from_which_job_the_version_came() -> None:
    assert FIRST.resources[0]["status"]["desired"] == {
        "uri": uri(V1),
        "digest": V1,
        "fineTuneJob": {"name": "job", "uid": "j-1"},
        "s3": {"endpoint": "http://s3:9000", "region": "eu"},
        "secretRef": {"name": "s3-keys"},
    }


def test_another_adapter_under_the_name_of_the_job_is_not_taken_until_the_spec_asks_for_it() -> None:
    observed = make_pass(make_pass(replace(FIRST, finetune_jobs={"job": OTHER})))
    assert read_served(observed) == V1
    assert observed.resources[0]["status"]["desired"]["fineTuneJob"]["uid"] == "j-1"
    reason, message = read_condition(observed, "Accepted")
    assert reason == "Accepted"
    assert f"spec.adapter.digest: {V2}" in message
    following = make_pass(edit(observed, adapter=TAKEN))
    assert read_served(following) == V2
    assert following.resources[0]["status"]["desired"]["fineTuneJob"]["uid"] == "j-2"
    assert read_condition(following, "Accepted")[1].endswith("according to its arguments and the adapter's description")


@pytest.mark.parametrize("anew", [job(ready=False, uid="j-2"), job(ready=False, stalled=True, uid="j-2")])
def test_a_job_that_trains_again_or_fails_takes_nothing_away(anew: Object) -> None:
    observed = make_pass(replace(FIRST, finetune_jobs={"job": anew}))
    assert read_served(observed) == V1
    assert read_condition(observed, "Ready")[0] == "RollingOut"
    assert "created again and has no adapter yet" in read_condition(observed, "Accepted")[1]


def test_an_edit_of_something_else_does_not_take_it_either() -> None:
    observed = edit(replace(FIRST, finetune_jobs={"job": OTHER}), verification={"tolerance": 0.5})
    assert read_served(make_pass(observed)) == V1


def test_the_same_adapter_under_another_uid_is_the_same() -> None:
    observed = make_pass(replace(FIRST, finetune_jobs={"job": job(uid="j-2")}))
    assert read_served(observed) == V1
    assert observed.resources[0]["status"]["desired"]["fineTuneJob"]["uid"] == "j-2"


def test_without_the_configmap_nothing_is_guessed() -> None:
    """Somebody deleted it by hand: the credentials of the old adapter are no longer known."""
    observed = make_pass(replace(FIRST, finetune_jobs={"job": OTHER}, config_map=None))
    assert read_served(observed) is None
    assert read_condition(observed, "Stalled")[0] == "FineTuneJobReplaced"


def test_a_job_with_another_digest_than_the_spec_asks_for_is_refused() -> None:
    observed = make_pass(group(adapter(adapter=TAKEN), finetune_jobs={"job": job()}))
    assert read_served(observed) is None
    reason, message = read_condition(observed, "Stalled")
    assert reason == "FineTuneJobReplaced"
    assert V1 in message
    assert V2 in message


def test_another_job_in_the_spec_is_taken_at_once() -> None:
    jobs = {"job": job(), "next": OTHER}
    observed = make_pass(edit(replace(FIRST, finetune_jobs=jobs), adapter={"fineTuneJobRef": {"name": "next"}}))
    assert read_served(observed) == V2
