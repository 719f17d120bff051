"""Checkpoints of a job's earlier runs are deleted when a later run is as far; those of other jobs stay."""

from typing import Any

from tools.testing.trainer_jobs import Workbench, train, train_until

OTHER = {"namespace": "team", "name": "other", "uid": "99999999-0000-4000-8000-000000000000"}


def runs(bench: Workbench) -> dict[str, set[str]]:
    """Return the steps of each run that has checkpoints."""
    steps_by_run: dict[str, set[str]] = {}
    for key in bench.objects():
        if "/checkpoints/run-" in key:
            _, _, _, run, step, *_ = key.split("/")
            steps_by_run.setdefault(run, set()).add(step)
    return steps_by_run


def seeded(bench: Workbench, seed: int, **meta: Any) -> dict[str, Any]:
    job = bench.job()
    training = {**job["spec"]["training"], "seed": seed}
    return {"metadata": meta or job["metadata"], "spec": {**job["spec"], "training": training}}


def test_an_earlier_run_goes_when_a_later_one_is_as_far(bench: Workbench) -> None:
    assert train_until(bench.settings_of(seeded(bench, 1)), 4).reason == "Preempted"
    (first,) = runs(bench)
    assert train_until(bench.settings_of(seeded(bench, 3, **OTHER)), 2).reason == "Preempted"
    (other_run,) = runs(bench).keys() - {first}
    result = train_until(bench.settings_of(seeded(bench, 2)), 2)
    assert any("is deleted when this training has come as far" in warning for warning in result.warnings)
    (second,) = runs(bench).keys() - {first, other_run}
    assert first in runs(bench), "it is further, and may be gone on with"
    result, _ = train(bench.settings_of(seeded(bench, 2)))
    assert result.reason == "Succeeded", result.message
    assert first not in runs(bench)
    assert runs(bench).keys() == {second, other_run}
