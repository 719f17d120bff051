"""spec.suspend holds a roll-out where it is, and takes nothing from the pods."""

from dataclasses import replace

from finetune_operator.reconcile.adapterdeployment.plan import make_plan
from tests.adapterdeployment.groups import (
    NOW,
    SETTINGS,
    V1,
    V2,
    V3,
    adapter,
    deployment,
    edit,
    group,
    make_pass,
    read_conditions,
    read_entry,
    say,
    take,
)

SERVED = make_pass(say(make_pass(group(adapter())), "abc", V1, V1))
BEGUN = make_pass(edit(SERVED, adapter=take(V2)))


def test_a_first_version_waits_and_the_pods_are_not_touched() -> None:
    observed = group(adapter(suspend=True))
    found = make_plan(observed, NOW, SETTINGS)
    assert (found.config_map, found.injection) == (None, None)
    assert read_conditions(make_pass(observed))["Ready"] == ("False", "Suspended")


def test_a_new_version_waits() -> None:
    observed = make_pass(edit(SERVED, adapter=take(V2), suspend=True))
    assert read_entry(observed) == (V1, None, None)
    found = read_conditions(observed)
    assert found["Suspended"] == ("True", "Suspended")
    assert found["Ready"] == ("False", "Suspended")
    assert not found.keys() & {"Reconciling", "Stalled"}


def test_a_rollout_stops_between_two_pods_and_goes_on_from_there() -> None:
    loading = make_pass(say(BEGUN, "a", V2, V1))
    held = make_pass(say(make_pass(edit(loading, suspend=True)), "a", V2, V2))
    assert read_entry(held) == (V2, V1, ["web-a"])
    assert read_entry(make_pass(edit(held, suspend=False))) == (V2, V1, ["web-a", "web-b"])


def test_a_third_version_does_not_begin_either() -> None:
    begun = make_pass(say(BEGUN, "a", V2, V2))
    held = make_pass(edit(begun, adapter=take(V3), suspend=True))
    assert held.config_map == begun.config_map
    assert make_pass(edit(held, suspend=False)).config_map != begun.config_map


def test_what_serves_goes_on_serving() -> None:
    observed = make_pass(edit(SERVED, suspend=True))
    found = read_conditions(observed)
    assert (found["Ready"], found["Suspended"]) == (("True", "Serving"), ("True", "Suspended"))
    rolling = {**deployment(), "status": {"observedGeneration": 1, "replicas": 3, "updatedReplicas": 2}}
    restarted = make_pass(replace(observed, deployment=rolling))
    assert read_conditions(restarted)["Ready"] == ("Unknown", "RollingOut")
    assert read_entry(restarted) == (V1, None, None)


def test_a_second_pass_changes_nothing() -> None:
    observed = make_pass(edit(SERVED, adapter=take(V2), suspend=True))
    assert make_pass(observed) == observed
