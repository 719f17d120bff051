"""An interrupted run ends with the same weights as one that was not."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.trainer.jobs import Workbench, train, train_until

TRAINING: dict[str, Any] = {
    "epochs": 2,
    "perDeviceBatchSize": 2,
    "gradientAccumulationSteps": 3,
    "maxLength": 48,
    "learningRate": 2e-3,
    "scheduler": "cosine",
    "warmupRatio": 0.2,
    "weightDecay": 0.01,
}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"rank": 4, "alpha": 8, "dropout": 0.2}},
    "qlora": {"qlora": {"rank": 4, "alpha": 8, "dropout": 0.2}},
}


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_run_interrupted_at_every_other_step_ends_bit_identical(
    workbench: Callable[[], Workbench], method: str, packing: bool
) -> None:
    spec: dict[str, Any] = {
        "method": METHODS[method],
        "training": TRAINING | {"packing": packing, "maxLength": 64 if packing else 48},
        "evaluation": {"everySteps": 3},
    }
    if packing:
        spec["training"] |= {"perDeviceBatchSize": 1, "gradientAccumulationSteps": 2}
    whole, pieces = workbench(), workbench()
    result, run = train(whole.settings(**spec))
    assert result.reason == "Succeeded", result.message
    assert run.progress is not None
    total = run.progress.total_steps
    for step in range(1, total, 2):
        interrupted = train_until(pieces.settings(**spec), step)
        assert interrupted.reason == "Preempted", interrupted.message
        assert interrupted.checkpoint is not None
        assert interrupted.checkpoint.step == step
    result, _ = train(pieces.settings(**spec))
    assert result.reason == "Succeeded", result.message
    assert result.resumed_from_step == max(range(1, total, 2))
    assert pieces.weights() == whole.weights()
