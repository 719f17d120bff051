"""The plan for a serving group and the statuses after it, for named groups."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_api.adapterdeployment import AdapterDeploymentStatus
from finetune_api.messages import DesiredAdapter, DesiredState
from finetune_api.reasons import Reason
from finetune_operator.kube.kinds import Object
from finetune_operator.reconcile.adapterdeployment.model import Observed, Obstacle, Plan
from finetune_operator.reconcile.adapterdeployment.plan import make_plan
from finetune_operator.reconcile.adapterdeployment.status import build_updates
from tests.adapterdeployment.groups import (
    NOW,
    SETTINGS,
    V1,
    V2,
    V3,
    adapter,
    config_map,
    deployment,
    group,
    job,
    pod,
    report,
    uri,
)

ACTIVE_V1 = {"active": {"uri": uri(V1), "digest": V1, "since": "2026-01-01T00:00:00Z"}}


def plan(observed: Observed) -> Plan:
    return make_plan(observed, NOW, SETTINGS)


def entries(decided: Plan) -> list[DesiredAdapter]:
    return decided.state.adapters if decided.state else []


def status(observed: Observed, injection: Obstacle | None = None, index: int = 0) -> Object:
    status_fields = build_updates(observed, plan(observed), injection, NOW)[index].status
    AdapterDeploymentStatus.model_validate(status_fields)  # it has only fields of the model
    return status_fields


def conditions(status_fields: Object) -> dict[str, tuple[str, str]]:
    return {item["type"]: (item["status"], item["reason"]) for item in status_fields["conditions"]}


def apply_plan(observed: Observed) -> Observed:
    """Return the group after its plan was applied once."""
    decided = plan(observed)
    return replace(observed, config_map=decided.config_map or observed.config_map)


def add_reports(
    observed: Observed,
    assigned: str,
    active: str | None,
    *,
    pods: tuple[str, ...] = ("web-a", "web-b", "web-c"),
    **fields: Any,
) -> Observed:
    return replace(
        observed,
        agent_reports={**observed.agent_reports, **{name: report(assigned, active, **fields) for name in pods}},
    )


SERVED = add_reports(apply_plan(group(adapter(status=ACTIVE_V1))), V1, V1)


def test_a_first_version_goes_to_every_pod_and_the_agent_comes_with_it() -> None:
    decided = plan(group(adapter()))
    (entry,) = entries(decided)
    assert (entry.version.digest, entry.previous, entry.pods) == (V1, None, None)
    assert decided.injection is not None
    assert conditions(status(group(adapter())))["Ready"] == ("Unknown", "RollingOut")


def test_a_job_that_is_not_ready_touches_no_pod() -> None:
    observed = group(adapter(digest=None), finetune_jobs={"job": job(ready=False)})
    decided = plan(observed)
    assert (decided.config_map, decided.injection) == (None, None)
    planned = status(observed)
    assert conditions(planned)["Reconciling"] == ("True", "AdapterNotReady")
    assert "40 %" in planned["conditions"][0]["message"]


def test_the_adapter_of_a_job_comes_with_its_place_and_credentials() -> None:
    (entry,) = entries(plan(group(adapter(digest=None), finetune_jobs={"job": job()})))
    assert (entry.version.digest, entry.endpoint, entry.region, entry.secret) == (V1, "http://s3:9000", "eu", "s3-keys")


OBSTACLES: dict[str, tuple[Observed, Reason, bool, str]] = {
    "no job": (group(adapter(digest=None)), Reason.FINETUNE_JOB_NOT_FOUND, False, "'job'"),
    "failed job": (
        group(adapter(digest=None), finetune_jobs={"job": job(ready=False, stalled=True)}),
        Reason.FINETUNE_JOB_FAILED,
        True,
        "row 3",
    ),
    "rank": (
        group(adapter(digest=None), finetune_jobs={"job": job(rank=64)}),
        Reason.RANK_TOO_HIGH,
        True,
        "--max-lora-rank 64",
    ),
    "method": (
        group(adapter(digest=None), finetune_jobs={"job": job(servableBy=[], peftType="IA3")}),
        Reason.ADAPTER_UNSUPPORTED,
        True,
        "IA3",
    ),
    "no Deployment": (group(adapter(), workload=None, pods=()), Reason.TARGET_NOT_FOUND, False, "'web'"),
    "no container": (
        group(adapter(target={"deploymentRef": {"name": "web"}, "container": "engine"})),
        Reason.CONTAINER_NOT_FOUND,
        True,
        "it has vllm",
    ),
    "no LoRA": (
        group(adapter(), workload=deployment(args=["--model=/m"])),
        Reason.LORA_DISABLED,
        True,
        "--enable-lora",
    ),
}


@pytest.mark.parametrize(("observed", "reason", "stalled", "message_part"), OBSTACLES.values(), ids=OBSTACLES.keys())
def test_an_obstacle_is_reported_and_nothing_is_touched(
    observed: Observed, reason: Reason, stalled: bool, message_part: str
) -> None:
    decided = plan(observed)
    assert (decided.config_map, decided.injection) == (None, None)
    planned = status(observed)
    assert conditions(planned)["Accepted"] == ("False" if stalled else "Unknown", reason)
    assert conditions(planned)["Ready"] == ("False" if stalled else "Unknown", reason)
    assert ("Stalled" in conditions(planned)) is stalled
    assert ("Reconciling" in conditions(planned)) is not stalled
    assert message_part in planned["conditions"][0]["message"]
    assert planned["observedGeneration"] == 1


def test_ready_when_each_pod_serves_and_takes_traffic() -> None:
    planned = status(SERVED)
    assert conditions(planned) == {
        "Accepted": ("True", "Accepted"),
        "Injected": ("True", "AgentInjected"),
        "Ready": ("True", "Serving"),
    }
    assert planned["pods"] == {"total": 3, "updated": 3, "ready": 3}
    assert planned["active"] == {"uri": uri(V1), "digest": V1, "since": "2026-01-01T00:00:00Z"}
    assert [pod["digest"] for pod in planned["podStatus"]] == [V1, V1, V1]


@pytest.mark.parametrize(
    "observed",
    {
        "a pod is not ready": replace(SERVED, pods=(*SERVED.pods[:2], pod("web-c", ready=False))),
        "a pod has no agent yet": replace(SERVED, pods=SERVED.pods[:2]),
        "the Deployment rolls": replace(
            SERVED,
            workload={**deployment(), "status": {"observedGeneration": 1, "replicas": 3, "updatedReplicas": 2}},
        ),
        "a pod lost it": add_reports(SERVED, V1, None, pods=("web-b",), state="Loading"),
    }.values(),
)
def test_not_ready_as_long_as_any_pod_is_not(observed: Observed) -> None:
    assert conditions(status(observed))["Ready"] == ("Unknown", "RollingOut")


def test_a_second_pass_changes_nothing() -> None:
    for observed in (
        SERVED,
        add_reports(
            apply_plan(group(adapter(digest=V2, status=ACTIVE_V1), config_map=SERVED.config_map)),
            V2,
            V1,
            state="Draining",
        ),
    ):
        after = apply_plan(observed)
        second_status = status(after)
        (resource,) = after.resources
        again = replace(after, resources=({**resource, "status": second_status},))
        assert plan(again).config_map == after.config_map
        assert status(again) == second_status


def test_pods_move_one_after_another_and_all_end_on_the_new_version() -> None:
    observed = replace(SERVED, resources=(adapter(digest=V2, status=ACTIVE_V1),))
    order = []
    for _ in range(10):
        observed = apply_plan(observed)
        (entry,) = entries(plan(observed))
        if entry.pods is None:
            break
        assert entry.previous is not None
        assert entry.previous.digest == V1
        moving = [name for name in entry.pods if name not in order]
        assert len(moving) <= 1
        order += moving
        observed = add_reports(observed, V2, V2, pods=tuple(entry.pods))
    assert order == ["web-a", "web-b", "web-c"]
    planned = status(observed)
    assert conditions(planned)["Ready"] == ("True", "Serving")
    assert planned["active"] == {"uri": uri(V2), "digest": V2, "since": "2026-01-02T03:04:05Z"}


def test_a_refusal_on_one_pod_stops_there_and_says_why() -> None:
    observed = apply_plan(replace(SERVED, resources=(adapter(digest=V2, status=ACTIVE_V1),)))
    observed = add_reports(
        observed, V2, V1, pods=("web-a",), state="Refused", reason=Reason.PROOF_FAILED, message="only 0% of its effect"
    )
    (entry,) = entries(plan(observed))
    assert entry.pods == ["web-a"]
    planned = status(observed)
    assert conditions(planned)["Stalled"] == ("True", "ProofFailed")
    assert conditions(planned)["Ready"] == ("False", "ProofFailed")
    assert "Reconciling" not in conditions(planned)
    assert "pod web-a: only 0% of its effect" in planned["conditions"][2]["message"]
    assert planned["active"]["digest"] == V1


def test_going_back_to_the_version_that_serves_moves_nobody_needlessly() -> None:
    observed = apply_plan(replace(SERVED, resources=(adapter(digest=V2, status=ACTIVE_V1),)))
    observed = add_reports(observed, V2, V1, pods=("web-a",), state="Refused", reason=Reason.PROOF_FAILED)
    observed = apply_plan(replace(observed, resources=(adapter(digest=V1, status=ACTIVE_V1),)))
    (entry,) = entries(plan(observed))
    assert (entry.version.digest, entry.pods) == (V1, None)


def test_a_third_version_begins_with_the_pod_that_has_the_second() -> None:
    observed = apply_plan(replace(SERVED, resources=(adapter(digest=V2, status=ACTIVE_V1),)))
    observed = add_reports(observed, V2, V2, pods=("web-a",))
    (entry,) = entries(plan(replace(observed, resources=(adapter(digest=V3, status=ACTIVE_V1),))))
    assert (entry.version.digest, entry.pods) == (V3, ["web-a"])
    assert entry.previous is not None
    assert entry.previous.digest == V1


def test_a_restarted_operator_that_has_no_reports_yet_believes_the_status() -> None:
    planned = status(SERVED)
    (resource,) = SERVED.resources
    fresh = replace(SERVED, agent_reports={}, resources=({**resource, "status": planned},))
    assert status(fresh) == planned
    assert plan(fresh).config_map == SERVED.config_map


def test_two_adapters_share_the_agent_and_the_budget() -> None:
    first, second = adapter("one", status=ACTIVE_V1), adapter("two", created="2026-01-01T00:00:01Z", status=ACTIVE_V1)
    observed = apply_plan(group(first, second))
    adapters_by_pod = {
        name: report(V1, V1, name="one").adapters + report(V1, V1, name="two").adapters
        for name in ("web-a", "web-b", "web-c")
    }
    observed = replace(
        observed,
        agent_reports={
            name: report(V1, V1).model_copy(update={"adapters": adapters}) for name, adapters in adapters_by_pod.items()
        },
    )
    moved = replace(
        observed,
        resources=(
            adapter("one", V2, status=ACTIVE_V1),
            adapter("two", V2, created="2026-01-01T00:00:01Z", status=ACTIVE_V1),
        ),
    )
    assert [entry.pods for entry in entries(plan(moved))] == [["web-a"], ["web-a"]]


def test_the_older_of_two_has_the_name() -> None:
    observed = group(adapter("one", servedName="x"), adapter("two", V2, created="2026-01-01T00:00:01Z", servedName="x"))
    assert [entry.deployment for entry in entries(plan(observed))] == ["one"]
    planned = status(observed, index=1)
    assert conditions(planned)["Stalled"] == ("True", "ServedNameTaken")
    assert "'one'" in planned["conditions"][0]["message"]


def test_one_bad_member_holds_up_no_other() -> None:
    observed = group(
        adapter("bad", None), adapter("good", V1, created="2026-01-01T00:00:01Z"), finetune_jobs={"job": job(rank=64)}
    )
    assert [entry.deployment for entry in entries(plan(observed))] == ["good"]
    assert conditions(status(observed, index=1))["Accepted"] == ("True", "Accepted")


def test_another_port_than_the_oldest_has_is_refused() -> None:
    second = adapter("two", created="2026-01-01T00:00:01Z", target={"deploymentRef": {"name": "web"}, "port": 9000})
    assert conditions(status(group(adapter("one"), second), index=1))["Stalled"] == ("True", "SpecInvalid")


def test_a_deleted_job_takes_nothing_away() -> None:
    observed = apply_plan(group(adapter(digest=None), finetune_jobs={"job": job()}))
    (resource,) = observed.resources
    later = replace(observed, finetune_jobs={}, resources=({**resource, "status": status(observed)},))
    assert plan(later).config_map == observed.config_map
    assert conditions(status(later))["Accepted"] == ("True", "Accepted")


def test_a_member_that_became_unresolvable_keeps_what_it_serves() -> None:
    item = adapter(
        digest=None, status={**ACTIVE_V1, "desired": {"uri": uri(V1), "digest": V1}, "observedGeneration": 0}
    )
    observed = replace(SERVED, resources=(item,))
    (entry,) = entries(plan(observed))
    assert entry.version.digest == V1
    assert conditions(status(observed))["Ready"] == ("Unknown", "FineTuneJobNotFound")


def test_a_single_pod_is_not_drained_and_the_status_says_so() -> None:
    observed = group(adapter(), workload=deployment(replicas=1), pods=(pod("web-a"),))
    (entry,) = entries(plan(observed))
    assert entry.drain is False
    assert "less than a second" in {item["type"]: item["message"] for item in status(observed)["conditions"]}["Ready"]
    assert entries(plan(group(adapter())))[0].drain is True


def test_no_replicas_is_reported() -> None:
    observed = group(adapter(), workload=deployment(replicas=0), pods=())
    assert conditions(status(observed))["Ready"] == ("Unknown", "NoPods")


def test_a_failing_download_is_reported_while_it_is_tried_again() -> None:
    observed = add_reports(
        apply_plan(group(adapter())),
        V1,
        None,
        pods=("web-b",),
        state="Failed",
        reason=Reason.DOWNLOAD_FAILED,
        message="no answer",
    )
    planned = status(observed)
    assert conditions(planned)["Ready"] == ("Unknown", "DownloadFailed")
    assert conditions(planned)["Reconciling"] == ("True", "DownloadFailed")


def test_a_conflict_over_a_field_is_apply_plan() -> None:
    planned = status(group(adapter()), Obstacle(Reason.FIELD_CONFLICT, "env is owned by kubectl"))
    assert conditions(planned)["Injected"] == ("False", "FieldConflict")
    assert conditions(planned)["Stalled"] == ("True", "FieldConflict")


def test_a_group_without_members_gives_everything_back() -> None:
    observed = group(config_map=config_map(DesiredState()))
    assert plan(observed) == Plan(remove=True)


def test_one_event_says_when_it_begins_to_serve() -> None:
    (new,) = build_updates(SERVED, plan(SERVED), None, NOW)
    assert [(event.type, event.reason) for event in new.events] == [("Normal", "Serving")]
    (resource,) = SERVED.resources
    later = replace(SERVED, resources=({**resource, "status": new.status},))
    (again,) = build_updates(later, plan(later), None, NOW)
    assert again.events == ()
