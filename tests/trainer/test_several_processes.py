"""Two processes learn the same as one, and continue their own checkpoints and those of another number of processes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load

from finetune_trainer.runtime.settings import Settings
from tests.trainer.second_process import SecondProcess, second_process
from tools.testing.trainer_jobs import Workbench, jsonl, train, train_until

TOLERANCE = 2e-5
"""Largest difference of a trained weight, of which the largest is about 0.2: sums in another order, over all steps."""
TRAINING: dict[str, Any] = {
    "epochs": 2,
    "perDeviceBatchSize": 2,
    "maxLength": 48,
    "learningRate": 2e-3,
    "scheduler": "cosine",
}
EXACT = {"lora": {"rank": 4, "alpha": 8}}
PAIRS = [
    {"prompt": f"What follows {number}?\n", "chosen": f"{number + 1}, I think.", "rejected": "No idea."}
    for number in range(40)
]


@pytest.fixture(scope="module", autouse=True)
def second() -> Iterator[None]:
    """Yield the other process."""
    with second_process():
        yield


def settings(bench: Workbench, processes: int, **spec: Any) -> Settings:
    """Return a job of four sequences in a step, however many processes share them; 36 sequences are nine steps."""
    training = TRAINING | {"gradientAccumulationSteps": 2 // processes} | spec.pop("training", {})
    if processes == 1:
        training.pop("sharding", None)
    return bench.settings(**{"method": EXACT, "training": training, "resources": {"gpusPerNode": processes}, **spec})


def weights(bench: Workbench) -> dict[str, torch.Tensor]:
    """Return what was trained; of full fine-tuning the model."""
    name = next(key for key in bench.objects() if key.endswith("model.safetensors") and "/adapter/" in key)
    return load(bench.read(name))


def difference(first: Workbench, second: Workbench) -> float:
    first_weights, second_weights = weights(first), weights(second)
    assert first_weights.keys() == second_weights.keys()
    return max(
        float((first_weights[name].float() - second_weights[name].float()).abs().max()) for name in first_weights
    )


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"training": {"gradientCheckpointing": "always", "packing": True, "maxSteps": 4, "epochs": None}},
        pytest.param({"method": {"qlora": {"rank": 4}}}, marks=pytest.mark.exhaustive),
        pytest.param({"method": {"adalora": {"initRank": 6, "targetRank": 3}}}, marks=pytest.mark.exhaustive),
        pytest.param({"method": {"lora": {"rank": 4, "init": "pissa"}}}, marks=pytest.mark.exhaustive),
        pytest.param({"method": {"full": {}}, "training": {"learningRate": 1e-4}}, marks=pytest.mark.exhaustive),
        {"evaluation": {"everySteps": 3, "selectBest": True}},
        pytest.param({"objective": "dpo"}, marks=pytest.mark.exhaustive),
        {"training": {"sharding": "full"}, "evaluation": {"everySteps": 3, "selectBest": True}},
        {
            "training": {
                "sharding": "full",
                "gradientCheckpointing": "always",
                "packing": True,
                "maxSteps": 4,
                "epochs": None,
            }
        },
    ],
    ids=["lora", "packed", "qlora", "adalora", "pissa", "full", "selectBest", "dpo", "sharded", "sharded and packed"],
)
def test_two_processes_learn_what_one_does(workbench: Callable[[], Workbench], spec: dict[str, Any]) -> None:
    batches = []
    for processes in (1, 2):
        bench = workbench()
        if "objective" in spec:
            bench.dataset(jsonl(PAIRS))
        result, run = train(settings(bench, processes, **spec))
        assert result.reason == "Succeeded", result.message
        assert run.progress is not None
        batches.append((bench, run.progress.total_steps, result.evaluation and result.evaluation.step))
    assert batches[0][1:] == batches[1][1:]
    assert difference(batches[0][0], batches[1][0]) < TOLERANCE


def test_two_processes_that_are_interrupted_end_bit_identical(workbench: Callable[[], Workbench]) -> None:
    uninterrupted, interrupted = workbench(), workbench()
    spec: dict[str, Any] = {"method": {"lora": {"rank": 4, "alpha": 8, "dropout": 0.2}}}
    result, _ = train(settings(uninterrupted, 2, **spec))
    assert result.reason == "Succeeded", result.message
    for step in (4, 9):
        stopped = train_until(settings(interrupted, 2, **spec), step)
        assert stopped.reason == "Preempted", stopped.message
        assert stopped.checkpoint is not None
        assert stopped.checkpoint.step == step
    states = {key.rsplit("/", 1)[-1] for key in interrupted.objects() if "step-00000009/rng" in key}
    assert states == {"rng_state_0.pth", "rng_state_1.pth"}, "the random numbers of both are kept"
    result, _ = train(settings(interrupted, 2, **spec))
    assert (result.reason, result.resumed_from_step) == ("Succeeded", 9)
    assert interrupted.weights() == uninterrupted.weights()


@pytest.mark.parametrize(("before", "after", "sharding"), [(2, 1, "none"), (1, 2, "none"), (2, 1, "full")])
def test_another_number_of_processes_continues_where_the_first_was(
    workbench: Callable[[], Workbench], before: int, after: int, sharding: str
) -> None:
    uninterrupted, interrupted = workbench(), workbench()
    train(settings(uninterrupted, 1))
    spec: dict[str, Any] = {"training": {"sharding": sharding}}
    assert train_until(settings(interrupted, before, **spec), 5).reason == "Preempted"
    result, _ = train(settings(interrupted, after, **spec))
    assert (result.reason, result.resumed_from_step) == ("Succeeded", 5)
    assert any(f"processes {before} → {after}" in warning for warning in result.warnings)
    assert difference(uninterrupted, interrupted) < TOLERANCE


GENUINE_STEP = transformers.Trainer.training_step


def shrink() -> None:
    """From the step after the fifth on, this process has memory for one row of a micro-step."""

    def step(self: Any, model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> torch.Tensor:
        if self.state.global_step >= 5 and inputs["input_ids"].shape[0] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return GENUINE_STEP(self, model, inputs, *more, **named)

    transformers.Trainer.training_step = step  # type: ignore[method-assign]


def recover() -> None:
    """The process has all its memory again."""
    transformers.Trainer.training_step = GENUINE_STEP  # type: ignore[method-assign]


def test_what_does_not_fit_in_the_other_process_is_made_smaller_in_both(workbench: Callable[[], Workbench]) -> None:
    whole, pieces = workbench(), workbench()
    train(settings(whole, 2))
    SecondProcess.pipe.send(shrink)
    try:
        result, _ = train(settings(pieces, 2))
    finally:
        SecondProcess.pipe.send(recover)
    assert (result.reason, result.resumed_from_step) == ("Succeeded", 4), result.message
    assert [str(change) for change in result.adjustments or ()] == [
        "training.perDeviceBatchSize 2 → 1",
        "training.gradientAccumulationSteps 1 → 2",
    ]
    assert difference(whole, pieces) < TOLERANCE


def test_an_uneven_pass_is_filled_up_and_reported(bench: Workbench) -> None:
    training = {"epochs": 1, "perDeviceBatchSize": 5}
    result, run = train(settings(bench, 2, training=training))
    assert result.reason == "Succeeded", result.message
    assert run.progress is not None
    assert run.progress.total_steps == 4
    assert run.derived_settings["sequences trained twice in a pass"] == "4"
