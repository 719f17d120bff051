"""spec.suspend holds a roll-out where it is, and takes nothing from the pods."""

from dataclasses import replace

from finetune_api.messages import DesiredAdapter
from finetune_operator.kube.kinds import Object
from finetune_operator.reconcile.adapterdeployment.model import Observed
from finetune_operator.reconcile.adapterdeployment.plan import make_plan
from finetune_operator.reconcile.adapterdeployment.status import build_updates
from tests.adapterdeployment.groups import NOW, SETTINGS, V1, V2, V3, adapter, deployment, group, report, uri

ACTIVE = {"active": {"uri": uri(V1), "digest": V1, "since": "2026-01-01T00:00:00Z"}}


def make_pass(observed: Observed, **reports: tuple[str, str]) -> Observed:
    """Make a pass after these pods reported the version that they are to serve, and the one that they serve."""
    said = {f"web-{name}": report(*versions) for name, versions in reports.items()}
    observed = replace(observed, agent_reports={**observed.agent_reports, **said})
    return replace(observed, config_map=make_plan(observed, SETTINGS).config_map or observed.config_map)


def edit(observed: Observed, digest: str, suspend: bool) -> Observed:
    return replace(observed, resources=(adapter(digest=digest, status=ACTIVE, suspend=suspend),))


def read_entry(observed: Observed) -> DesiredAdapter | None:
    state = make_plan(observed, SETTINGS).state
    return state.adapters[0] if state is not None and state.adapters else None


def read_conditions(observed: Observed) -> dict[str, tuple[str, str]]:
    (update,) = build_updates(observed, make_plan(observed, SETTINGS), None, NOW)
    conditions: list[Object] = update.status["conditions"]
    return {item["type"]: (item["status"], item["reason"]) for item in conditions}


ALL_V1 = {"a": (V1, V1), "b": (V1, V1), "c": (V1, V1)}
SERVED = make_pass(make_pass(group(adapter(status=ACTIVE))), **ALL_V1)


def test_a_first_version_waits_and_the_pods_are_not_touched() -> None:
    observed = group(adapter(suspend=True))
    found = make_plan(observed, SETTINGS)
    assert (found.config_map, found.injection) == (None, None)
    assert read_conditions(observed)["Ready"] == ("False", "Suspended")


def test_a_new_version_waits() -> None:
    observed = make_pass(edit(SERVED, V2, suspend=True))
    entry = read_entry(observed)
    assert entry is not None
    assert (entry.version.digest, entry.pods) == (V1, None)
    found = read_conditions(observed)
    assert found["Suspended"] == ("True", "Suspended")
    assert found["Ready"] == ("False", "Suspended")
    assert not found.keys() & {"Reconciling", "Stalled"}


def test_a_rollout_stops_between_two_pods_and_goes_on_from_there() -> None:
    begun = make_pass(make_pass(edit(SERVED, V2, suspend=False)), a=(V2, V1))
    held = make_pass(make_pass(edit(begun, V2, suspend=True)), a=(V2, V2))
    entry = read_entry(held)
    assert entry is not None
    assert (entry.version.digest, entry.pods) == (V2, ["web-a"])
    assert entry.previous is not None
    assert entry.previous.digest == V1
    resumed = read_entry(edit(held, V2, suspend=False))
    assert resumed is not None
    assert resumed.pods == ["web-a", "web-b"]


def test_a_third_version_does_not_begin_either() -> None:
    begun = make_pass(make_pass(edit(SERVED, V2, suspend=False)), a=(V2, V2))
    assert make_pass(edit(begun, V3, suspend=True)).config_map == begun.config_map
    assert read_entry(edit(begun, V3, suspend=False)) != read_entry(edit(begun, V3, suspend=True))


def test_what_serves_goes_on_serving() -> None:
    observed = make_pass(edit(SERVED, V1, suspend=True))
    found = read_conditions(observed)
    assert (found["Ready"], found["Suspended"]) == (("True", "Serving"), ("True", "Suspended"))
    restarted = make_pass(observed, b=(V1, V1))
    rolling = {**deployment(), "status": {"observedGeneration": 1, "replicas": 3, "updatedReplicas": 2}}
    assert read_conditions(replace(restarted, deployment=rolling))["Ready"] == ("Unknown", "RollingOut")
    entry = read_entry(restarted)
    assert entry is not None
    assert entry.pods is None


def test_a_second_pass_changes_nothing() -> None:
    observed = make_pass(edit(SERVED, V2, suspend=True))
    assert make_pass(observed).config_map == observed.config_map
