"""With which settings a job that ran out of memory is tried next."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api import ladder
from finetune_api.finetunejob import Adjustment, FineTuneJobSpec
from finetune_api.reasons import Reason

SPEC: dict[str, Any] = {
    "model": {"uri": "hf://org/model"},
    "dataset": {"uri": "configmap://data/rows.jsonl"},
    "output": {"s3": {"bucket": "adapters"}},
}
ALL = {"outOfMemory": {"quantize": True}}


def spec(**more: Any) -> FineTuneJobSpec:
    return FineTuneJobSpec.model_validate(SPEC | more)


def climbed(start: FineTuneJobSpec) -> list[FineTuneJobSpec]:
    """Return the spec, and the specs after each step of the ladder."""
    specs, times = [start], 1
    while (following := ladder.reduce_memory(start, times)) is not None:
        specs.append(following)
        times += 1
    return specs


@pytest.mark.parametrize(
    ("objective", "batches"),
    [
        ("sft", [8, 4, 2, 1]),
        ("sft", [6, 3, 1]),
        ("sft", [7, 1]),
        ("sft", [12, 6, 3, 1]),
        ("sft", [1]),
        ("kto", [8, 4, 2]),
        ("kto", [6, 3]),
        ("kto", [5]),
    ],
)
def test_the_batch_is_halved_first_as_far_as_it_goes(objective: str, batches: list[int]) -> None:
    training = {"perDeviceBatchSize": batches[0], "gradientCheckpointing": "always"}
    batch_sizes = [
        step.training.per_device_batch_size for step in climbed(spec(objective=objective, training=training))
    ]
    assert batch_sizes == batches


@given(st.integers(1, 200), st.integers(1, 50), st.sampled_from(["sft", "dpo"]))
def test_no_step_changes_how_many_sequences_an_optimizer_step_has(
    batch: int, accumulation: int, objective: str
) -> None:
    training = {"perDeviceBatchSize": batch, "gradientAccumulationSteps": accumulation}
    for step in climbed(spec(objective=objective, training=training, failurePolicy=ALL)):
        smaller = step.training
        assert smaller.batch_size * smaller.accumulation_steps == batch * accumulation


def test_then_gradient_checkpointing_then_quantisation_and_each_is_reported() -> None:
    start = spec(
        training={"perDeviceBatchSize": 2, "gradientAccumulationSteps": 3},
        method={"lora": {"rank": 8, "targetModules": ["q_proj"], "dropout": 0.1}},
        failurePolicy=ALL,
    )
    adjustments = [[str(change) for change in ladder.list_adjustments(start, step)] for step in climbed(start)]
    batch = ["training.perDeviceBatchSize 2 → 1", "training.gradientAccumulationSteps 3 → 6"]
    checkpointing = [*batch, "training.gradientCheckpointing auto → always"]
    assert adjustments == [[], batch, checkpointing, [*checkpointing, "method.quantization none → nf4"]]
    (*_, last) = climbed(start)
    assert last.method.name == "qlora"
    block = last.method.config.to_json()
    assert (block["rank"], block["targetModules"], block["dropout"]) == (8, ["q_proj"], 0.1)


@pytest.mark.parametrize(
    ("name", "method", "quantised"),
    [
        ("lora", {"lora": {}}, True),
        ("dora", {"dora": {}}, True),
        ("a decomposition of the base itself", {"lora": {"init": "pissa"}}, False),
        ("quantised already", {"qlora": {}}, False),
        ("a method without", {"ia3": {}}, False),
    ],
)
def test_what_can_be_quantised(name: str, method: dict[str, Any], quantised: bool) -> None:
    (*_, last) = climbed(spec(method=method, training={"gradientCheckpointing": "always"}, failurePolicy=ALL))
    assert (
        last != spec(method=method, training={"gradientCheckpointing": "always"}, failurePolicy=ALL)
    ) == quantised, name
    assert (last.method.quantization is not None) == (quantised or "qlora" in method)


def test_quantisation_is_only_for_who_allowed_it() -> None:
    (*_, last) = climbed(spec())
    assert (last.method.name, last.training.gradient_checkpointing) == ("lora", "always")


@pytest.mark.parametrize(
    "policy",
    [{"reduceBatchSize": False, "enableGradientCheckpointing": False}, {"enableGradientCheckpointing": False}],
)
def test_a_step_that_is_switched_off_is_left_out_and_named_at_the_end(policy: dict[str, bool]) -> None:
    start = spec(training={"perDeviceBatchSize": 2}, failurePolicy={"outOfMemory": policy})
    assert len(climbed(start)) == 1 + ("reduceBatchSize" not in policy)
    end = ladder.explain_end(start, 2)
    assert f"allow {', '.join(policy)}, quantize in failurePolicy.outOfMemory" in end


def test_checkpointing_is_not_turned_on_where_it_does_not_go() -> None:
    (only,) = climbed(spec(method={"prefixTuning": {}}))
    assert only.training.gradient_checkpointing == "auto"


def test_the_end_says_what_was_reached_and_what_is_left_to_do() -> None:
    start = spec(training={"perDeviceBatchSize": 4}, failurePolicy=ALL)
    end = ladder.explain_end(start, 5)
    assert "perDeviceBatchSize is 1, training.gradientAccumulationSteps is 4" in end
    assert "method.quantization is nf4" in end
    assert "allow" not in end
    assert "lower training.maxLength" in end


@pytest.mark.parametrize(
    ("reason", "gpus", "mended"),
    [
        (Reason.OUT_OF_MEMORY, 1, True),
        (Reason.HOST_OUT_OF_MEMORY, 1, False),
        (Reason.HOST_OUT_OF_MEMORY, 0, True),
        (Reason.TRAINER_ERROR, 0, False),
    ],
)
def test_which_failures_less_memory_can_avoid(reason: Reason, gpus: int, mended: bool) -> None:
    assert ladder.needs_less_memory(spec(resources={"gpusPerNode": gpus}), reason) == mended


def test_a_base_that_is_sharded_is_not_quantised() -> None:
    start = spec(training={"sharding": "full"}, resources={"gpusPerNode": 2}, failurePolicy=ALL)
    assert climbed(start)[-1].method.name == "lora"


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("checkpointing", ["auto", "never", "always"])
def test_adjustments_lead_to_the_spec_that_they_were_made_from(method: str, checkpointing: str) -> None:
    training = {"perDeviceBatchSize": 8, "gradientAccumulationSteps": 3, "gradientCheckpointing": checkpointing}
    start = spec(method={method: {}}, training=training, failurePolicy=ALL)
    for step in climbed(start):
        assert ladder.apply_adjustments(start, ladder.list_adjustments(start, step)) == step


def test_adjustments_made_one_after_another_are_those_from_the_first_spec_to_the_last() -> None:
    steps = [start := spec(training={"perDeviceBatchSize": 8}, failurePolicy=ALL), *climbed(start)]
    added: list[Adjustment] = []
    for before, after in pairwise(steps):
        added = ladder.add_adjustments(added, ladder.list_adjustments(before, after))
        assert sorted(map(str, added)) == sorted(map(str, ladder.list_adjustments(start, after)))


def test_adjustments_hold_whatever_the_policy_allows_now() -> None:
    start = spec(training={"perDeviceBatchSize": 8}, failurePolicy=ALL)
    forbidden = {"outOfMemory": {"reduceBatchSize": False, "enableGradientCheckpointing": False, "quantize": False}}
    edited = spec(training={"perDeviceBatchSize": 8}, failurePolicy=forbidden)
    last = climbed(start)[-1]
    again = ladder.apply_adjustments(edited, ladder.list_adjustments(start, last))
    assert (again.method, again.training) == (last.method, last.training)
