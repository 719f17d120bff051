"""The processes of a training evaluate its adapter together, and the first one alone if they cannot."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from finetune_api.finetunejob import EvaluationStatus
from finetune_api.reasons import EXIT_CODES, Reason
from finetune_trainer import final_evaluation
from finetune_trainer.evaluation import likelihood
from finetune_trainer.evaluation.scoring import Scoring
from tests.trainer.second_process import SecondProcess, second_process
from tests.trainer.test_process_group import children
from tools.testing.trainer_jobs import Workbench, jsonl, train
from tools.testing.trainer_pods import Listener, Pod, listening

PAIRS = [
    {"prompt": f"What follows {number}?\n", "chosen": f"{number + 1}, I think.", "rejected": "No" * (number % 7 + 1)}
    for number in range(60)
]
ROWS = [
    {"prompt": pair["prompt"], "completion": pair["chosen"] + " So it is." * (number % 4)}
    for number, pair in enumerate(PAIRS)
]
RATED: list[dict[str, Any]] = [
    {"prompt": pair["prompt"], "completion": pair["chosen" if good else "rejected"], "label": good}
    for number, pair in enumerate(PAIRS)
    for good in [number % 2 == 0]
]
SPEC: dict[str, Any] = {
    "dataset": {"uri": "configmap://data/train.jsonl", "validation": {"fraction": 0.6}},
    "training": {"maxSteps": 2, "perDeviceBatchSize": 2, "maxLength": 48, "learningRate": 2e-3},
    # no adapter passes, so that each further attempt evaluates the same weights again
    "evaluation": {"samples": 1, "gate": {"max": 1e-6}, "forgetting": {"maxSequences": 5}},
    "resources": {"gpusPerNode": 2},
}
GENUINE_SCORE = Scoring.score_tuned


@pytest.fixture(scope="module")
def second() -> Iterator[None]:
    """Yield the other process."""
    with second_process():
        yield


def set_min_rows(rows: int) -> None:
    """Set from how many rows on the processes evaluate together."""
    final_evaluation.MIN_ROWS = rows


def run_out_of_memory() -> None:
    """Let this process lack memory for the adapter's scores."""

    def score_tuned(self: Scoring, tuned: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    Scoring.score_tuned = score_tuned  # type: ignore[method-assign]


def recover() -> None:
    """Let it have all its memory again."""
    Scoring.score_tuned = GENUINE_SCORE  # type: ignore[method-assign]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of the batches that this process scores."""
    sizes: list[int] = []
    forward = likelihood._forward

    def counted(model: Any, texts: list[list[int]]) -> Any:
        sizes.append(len(texts))
        return forward(model, texts)

    monkeypatch.setattr(likelihood, "_forward", counted)
    return sizes


def evaluate(bench: Workbench, **spec: Any) -> EvaluationStatus:
    """Train, or continue at the last step, and return the evaluation."""
    result, _ = train(bench.settings(**SPEC | spec))
    assert result.reason == Reason.GATE_FAILED, result.message
    assert result.evaluation is not None
    return result.evaluation


def evaluate_alone(bench: Workbench, **spec: Any) -> EvaluationStatus:
    """Let the first process evaluate alone, without the scores that are kept."""
    shutil.rmtree(bench.server.buckets / bench.bucket / "team" / "job" / "checkpoints" / "base-scores")
    genuine = final_evaluation.MIN_ROWS
    try:
        for rows in (10**6, genuine):
            SecondProcess.pipe.send(partial(set_min_rows, rows))
            set_min_rows(rows)
            if rows != genuine:
                evaluation = evaluate(bench, **spec)
    finally:
        set_min_rows(genuine)
    return evaluation


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize(
    "spec",
    [
        {"objective": "sft"},
        {"objective": "dpo"},
        pytest.param({"objective": "kto"}, marks=pytest.mark.exhaustive),
        pytest.param({"objective": "orpo"}, marks=pytest.mark.exhaustive),
        pytest.param({"objective": "reward", "evaluation": {"gate": {"max": 1e-6}}}, marks=pytest.mark.exhaustive),
        pytest.param({"method": {"full": {}}}, marks=pytest.mark.exhaustive),
    ],
    ids=["sft", "dpo", "kto", "orpo", "reward", "full"],
)
def test_two_processes_share_the_batches_and_give_the_numbers_of_one(
    bench: Workbench, spec: dict[str, Any], passes: list[int]
) -> None:
    rows = {"sft": ROWS, "kto": RATED}.get(spec.get("objective", "sft"), PAIRS)
    bench.dataset(jsonl(rows))
    together, counts = evaluate(bench, **spec), [len(passes)]
    passes.clear()
    known, counts = evaluate(bench, **spec), [*counts, len(passes)]
    passes.clear()
    alone, counts = evaluate_alone(bench, **spec), [*counts, len(passes)]
    assert together == known == alone
    assert (alone.forgetting is None) is (spec.get("objective") == "reward")
    assert counts[0] < 0.8 * counts[2], counts
    assert counts[1] < counts[0], counts


@pytest.mark.usefixtures("second")
def test_a_worker_that_lacks_memory_leaves_the_evaluation_to_the_first_process(bench: Workbench) -> None:
    bench.dataset(jsonl(ROWS))
    SecondProcess.pipe.send(run_out_of_memory)
    try:
        evaluation = evaluate(bench)
    finally:
        SecondProcess.pipe.send(recover)
    assert evaluation == evaluate_alone(bench)


@pytest.mark.usefixtures("second")
def test_a_base_that_fits_no_gpu_is_streamed_by_the_first_process_alone(
    bench: Workbench, loads_on_full_gpu: list[str]
) -> None:
    bench.dataset(jsonl(ROWS))
    assert evaluate(bench).rows == 36
    assert loads_on_full_gpu == ["gpu", "gpu", "streamed"]


@pytest.fixture
def listener() -> Iterator[Listener]:
    """Yield a report endpoint on loopback."""
    with listening() as listener:
        yield listener


def wait_for_evaluation(pod: Pod) -> int:
    """Wait until the processes of a pod evaluate together, and return the worker."""
    assert pod.process.stdout is not None
    next(line for line in pod.process.stdout if "2 processes evaluate together" in line)
    (worker,) = children(pod.process.pid)
    return worker


def test_a_pod_ends_at_once_when_asked_and_outlives_a_worker_that_dies_in_the_evaluation(
    bench: Workbench, listener: Listener
) -> None:
    bench.dataset(jsonl(ROWS))
    job = bench.job(**SPEC | {"evaluation": {"samples": 1}})
    pod = Pod(bench, job, listener, 1)
    worker = wait_for_evaluation(pod)
    os.kill(worker, signal.SIGSTOP)
    time.sleep(5)  # by then the first process waits for it
    pod.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    try:
        pod.process.wait(20)
    finally:
        pod.process.kill()
        os.kill(worker, signal.SIGCONT)
    assert pod.end()[0] == EXIT_CODES[Reason.PREEMPTED]
    assert time.monotonic() - began < 30, "the worker, which has the same output, ends too"

    pod = Pod(bench, job, listener, 2)
    os.kill(wait_for_evaluation(pod), signal.SIGKILL)
    code, log = pod.end()
    assert code == 0, log
    assert "the first process evaluates alone" in log
    assert (pod.result().reason, pod.result().resumed_from_step) == ("Succeeded", 2)
