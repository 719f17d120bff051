"""What the versions of the engines mean for the roll-out and the status of a serving group."""

from dataclasses import replace

import pytest

from finetune_api.messages import AgentEngine
from finetune_operator.reconcile.adapterdeployment.model import Observed
from finetune_operator.reconcile.adapterdeployment.plan import make_plan
from finetune_operator.reconcile.adapterdeployment.status import build_updates
from tests.adapterdeployment.groups import NOW, SETTINGS, V1, V2, adapter, group, report, uri

OLD = AgentEngine(version="0.30.2", moves_by_restart=True, limits=["a name moves by a restart only"])
NEW = AgentEngine(version="0.33.0")
ACTIVE_V1 = {"active": {"uri": uri(V1), "digest": V1, "since": "2026-01-01T00:00:00Z"}}


def serving(engines: dict[str, AgentEngine]) -> Observed:
    """Return a group whose pods all serve the first version while the second is desired."""
    before = group(adapter(digest=V1))
    applied = replace(before, config_map=make_plan(before, NOW, SETTINGS).config_map)
    reports = {pod: report(V1, V1).model_copy(update={"engine": engine}) for pod, engine in engines.items()}
    return replace(applied, resources=(adapter(digest=V2, status=ACTIVE_V1),), agent_reports=reports)


def assigned(observed: Observed) -> list[str] | None:
    state = make_plan(observed, NOW, SETTINGS).state
    assert state is not None
    (entry,) = state.adapters
    assert (entry.version.digest, entry.previous and entry.previous.digest) == (V2, V1)
    return entry.pods


def test_where_only_a_restart_moves_a_name_each_new_pod_takes_the_version_at_once() -> None:
    assert assigned(serving({"web-a": OLD, "web-b": OLD, "web-c": OLD})) is None


def test_engines_of_several_versions_move_one_after_another() -> None:
    assert assigned(serving({"web-a": OLD, "web-b": NEW, "web-c": NEW})) == ["web-a"]


def test_the_status_counts_the_pods_of_each_version_and_says_what_follows() -> None:
    observed = serving({"web-a": NEW, "web-b": OLD, "web-c": NEW})
    (update,) = build_updates(observed, make_plan(observed, NOW, SETTINGS), None, NOW)
    assert update.status["engines"] == [
        {"version": "0.30.2", "pods": 1, "limits": ["a name moves by a restart only"]},
        {"version": "0.33.0", "pods": 2, "limits": []},
    ]


@pytest.mark.parametrize(("field", "reason"), [("replaced", "AdapterReplaced"), ("failed_reproofs", "ProofFailed")])
def test_what_a_pod_had_to_restore_is_one_event_for_each_time(field: str, reason: str) -> None:
    observed = serving({"web-a": NEW})
    attacked = observed.agent_reports["web-a"]
    (entry,) = attacked.adapters
    reports = {"web-a": attacked.model_copy(update={"adapters": [entry.model_copy(update={field: 1})]})}
    observed = replace(observed, agent_reports=reports)
    (update,) = build_updates(observed, make_plan(observed, NOW, SETTINGS), None, NOW)
    (event,) = [event for event in update.events if event.reason == reason]
    assert "pod web-a" in event.note
    unchanged = replace(observed, resources=({**update.resource, "status": update.status},))
    (update,) = build_updates(unchanged, make_plan(unchanged, NOW, SETTINGS), None, NOW)
    assert update.events == ()


def test_the_agents_are_told_how_often_to_prove() -> None:
    for verification, seconds in (({}, 3600), ({"everyMinutes": 5}, 300), ({"everyMinutes": 0}, 0)):
        state = make_plan(group(adapter(verification=verification)), NOW, SETTINGS).state
        assert state is not None
        assert [entry.prove_every_seconds for entry in state.adapters] == [seconds]
