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
    add_reports,
    build_source,
    deployment,
    edit,
    group,
    make_pass,
    read_conditions,
    read_entry,
)

SERVED = make_pass(add_reports(make_pass(group(adapter())), "abc", V1, V1))
BEGUN = make_pass(edit(SERVED, adapter=build_source(V2)))


def test_a_first_version_waits_and_the_pods_are_not_touched() -> None:
    observed = group(adapter(suspend=True))
    plan = make_plan(observed, NOW, SETTINGS)
    assert (plan.config_map, plan.injection) == (None, None)
    assert read_conditions(make_pass(observed))["Ready"] == ("False", "Suspended")


def test_a_new_version_waits() -> None:
    observed = make_pass(edit(SERVED, adapter=build_source(V2), suspend=True))
    assert read_entry(observed) == (V1, None, None)
    conditions = read_conditions(observed)
    assert conditions["Suspended"] == ("True", "Suspended")
    assert conditions["Ready"] == ("False", "Suspended")
    assert not conditions.keys() & {"Reconciling", "Stalled"}


def test_a_rollout_stops_between_two_pods_and_continues_from_there() -> None:
    loading = make_pass(add_reports(BEGUN, "a", V2, V1))
    suspended = make_pass(add_reports(make_pass(edit(loading, suspend=True)), "a", V2, V2))
    assert read_entry(suspended) == (V2, V1, ["web-a"])
    assert read_entry(make_pass(edit(suspended, suspend=False))) == (V2, V1, ["web-a", "web-b"])


def test_a_third_version_does_not_begin_either() -> None:
    rolling_out = make_pass(add_reports(BEGUN, "a", V2, V2))
    suspended = make_pass(edit(rolling_out, adapter=build_source(V3), suspend=True))
    assert suspended.config_map == rolling_out.config_map
    assert make_pass(edit(suspended, suspend=False)).config_map != rolling_out.config_map


def test_a_served_version_keeps_serving() -> None:
    observed = make_pass(edit(SERVED, suspend=True))
    conditions = read_conditions(observed)
    assert (conditions["Ready"], conditions["Suspended"]) == (("True", "Serving"), ("True", "Suspended"))
    rolling = {**deployment(), "status": {"observedGeneration": 1, "replicas": 3, "updatedReplicas": 2}}
    restarted = make_pass(replace(observed, workload=rolling))
    assert read_conditions(restarted)["Ready"] == ("Unknown", "RollingOut")
    assert read_entry(restarted) == (V1, None, None)


def test_a_second_pass_changes_nothing() -> None:
    observed = make_pass(edit(SERVED, adapter=build_source(V2), suspend=True))
    assert make_pass(observed) == observed
