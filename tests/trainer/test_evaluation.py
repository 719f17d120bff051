"""What is measured on the held-out rows, and what is decided by it: the gate before publishing."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.finetunejob import EvaluationStatus
from finetune_api.gate import Gate
from finetune_api.manifest import AdapterManifest
from finetune_api.reasons import EXIT_CODES, Reason
from finetune_trainer.attempt import exit_code
from finetune_trainer.checkpoints.best_weights import EvaluationHistory, add_evaluation
from finetune_trainer.data import forgetting_text
from finetune_trainer.data.dataset import Example
from finetune_trainer.distributed import process_group
from finetune_trainer.evaluation import forgetting, gate, likelihood
from finetune_trainer.models.loading import load_base
from finetune_trainer.preflight import check
from tools.testing.trainer_jobs import Workbench, train, train_until

MEASURED = EvaluationStatus(
    base_loss=4.0, loss=3.0, improvement_percent=25.0, rows=20, base_perplexity=54.59815, perplexity=20.08554
)


@pytest.mark.parametrize(
    ("limits", "refusal"),
    [
        ({"max": 3.0}, None),
        ({"max": 2.9}, "the held-out loss is 3, the gate allows at most 2.9"),
        ({"minImprovementPercent": 25.0}, None),
        (
            {"minImprovementPercent": 30.0},
            "the held-out loss is 25 % lower than the base's 4, the gate requires at least 30 % lower",
        ),
        ({"metric": "perplexity", "max": 20.0}, "the held-out perplexity is 20.0855, the gate allows at most 20"),
        ({"metric": "perplexity", "minImprovementPercent": 60.0}, None),
        (
            {"max": 1.0, "minImprovementPercent": 50.0},
            "the held-out loss is 3, the gate allows at most 1, "
            "and is 25 % lower than the base's 4, the gate requires at least 50 % lower",
        ),
    ],
)
def test_the_gate_says_what_was_found_and_what_was_wanted(limits: dict[str, Any], refusal: str | None) -> None:
    judged, message = gate.apply_gate(Gate.model_validate(limits), MEASURED)
    assert message == refusal
    assert judged.passed is (refusal is None)


def test_an_adapter_that_is_worse_than_its_base_passes_no_improvement() -> None:
    worse = EvaluationStatus(base_loss=2.0, loss=2.5, improvement_percent=-25.0, rows=20)
    _, message = gate.apply_gate(Gate(min_improvement_percent=0), worse)
    assert message == "the held-out loss is 25 % higher than the base's 2, the gate requires at least 0 % lower"


def test_without_a_gate_nothing_is_judged() -> None:
    assert gate.apply_gate(None, MEASURED) == (MEASURED, None)


def test_a_rejected_adapter_is_kept_but_not_published_and_a_milder_gate_lets_it_through(bench: Workbench) -> None:
    strict = {"gate": {"metric": "perplexity", "max": 1.01}}
    result, _ = train(bench.settings(evaluation=strict, output=bench.job()["spec"]["output"] | {"mergedModel": True}))
    assert (result.reason, exit_code(result)) == (Reason.GATE_FAILED, EXIT_CODES[Reason.GATE_FAILED])
    assert result.adapter is None
    assert result.evaluation is not None
    assert result.evaluation.passed is False
    assert result.evaluation.perplexity == pytest.approx(math.exp(result.evaluation.loss), rel=1e-4)
    assert result.evaluation.base_perplexity == pytest.approx(math.exp(result.evaluation.base_loss), rel=1e-4)
    rejected = f"s3://{bench.bucket}/team/job/rejected"
    assert f"spec.evaluation.gate: the held-out perplexity is {result.evaluation.perplexity:.6g}" in result.message
    assert (
        f"the gate allows at most 1.01: the adapter is not published; it is kept with its report in {rejected}"
        in result.message
    )
    assert result.report is not None
    assert result.report.uri == f"{rejected}/report.html"
    keys = [key.removeprefix("team/job/") for key in bench.objects() if "/checkpoints/" not in key]
    assert {key.split("/")[0] for key in keys} == {"rejected"}, "nothing is where a published adapter is looked for"
    manifest = AdapterManifest.model_validate_json(bench.read("team/job/rejected/manifest.json"))
    assert manifest.evaluation == result.evaluation
    assert {f"rejected/{file.path}" for file in manifest.files} == set(keys) - {"rejected/manifest.json"}
    weights = bench.read("team/job/rejected/adapter_model.safetensors")

    again, _ = train(bench.settings(evaluation=strict))
    assert (again.reason, again.resumed_from_step) == (Reason.GATE_FAILED, 6), "cut off, it takes its own place"

    result, _ = train(bench.settings(evaluation={"gate": {"minImprovementPercent": 0.01}}))
    assert result.reason == "Succeeded", result.message
    assert result.evaluation is not None
    assert (result.evaluation.passed, result.resumed_from_step) == (True, 6)
    assert bench.weights() == weights


@pytest.mark.parametrize(
    ("name", "losses", "min_delta", "expected"),
    [
        ("always lower", [3.0, 2.0, 1.0], 0.0, EvaluationHistory(3, 1.0, 0)),
        ("lower, then higher", [3.0, 2.0, 2.5, 2.1], 0.0, EvaluationHistory(2, 2.0, 2)),
        ("equal is no improvement", [2.0, 2.0], 0.0, EvaluationHistory(1, 2.0, 1)),
        ("a little lower is the best, but no improvement", [2.0, 1.95, 1.92], 0.1, EvaluationHistory(3, 1.92, 2)),
        ("far enough below again", [2.0, 1.95, 1.8], 0.1, EvaluationHistory(3, 1.8, 0)),
        ("no number", [math.nan, 2.0, math.nan], 0.0, EvaluationHistory(2, 2.0, 1)),
        ("never a number", [math.nan, math.inf], 0.0, EvaluationHistory(None, math.inf, 2)),
    ],
)
def test_the_best_evaluation_and_the_patience(
    name: str, losses: list[float], min_delta: float, expected: EvaluationHistory
) -> None:
    history = EvaluationHistory()
    for step, loss in enumerate(losses, start=1):
        history = add_evaluation(history, step, loss, min_delta)
    assert history == expected, name


@pytest.mark.parametrize(
    ("name", "lengths", "tokens", "expected"),
    [
        ("nothing", [], 10, []),
        ("as many as fit, padding included", [2, 5, 4, 1], 10, [[1, 2], [0, 3]]),
        ("one that is too long is alone", [30, 3, 3], 6, [[0], [1, 2]]),
        ("without a limit each is alone", [3, 4], 0, [[1], [0]]),
    ],
)
def test_rows_of_similar_length_are_a_batch_the_longest_first(
    name: str, lengths: list[int], tokens: int, expected: list[list[int]]
) -> None:
    assert likelihood.plan_batches(lengths, tokens) == expected, name


def test_a_batch_gives_each_row_what_it_has_alone(base_model: Path) -> None:
    model = load_base(base_model, torch.float32)
    texts = [[5 + number % 40 for number in range(length)] for length in (3, 40, 17, 17, 1, 30)]
    alone, batched = likelihood.compute_logits(model, texts), likelihood.compute_logits(model, texts, 200)
    assert [logits.shape[0] for logits in batched] == [3, 40, 17, 17, 1, 30]
    for single, batch_value in zip(alone, batched, strict=True):
        torch.testing.assert_close(single, batch_value, atol=1e-5, rtol=0)
    examples = [Example(text, text) for text in texts]
    assert likelihood.mean_loss(model, examples, 200) == pytest.approx(likelihood.mean_loss(model, examples), rel=1e-6)


def test_processes_share_the_batches_and_make_equally_many_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def parts(size: int, items: list[str]) -> list[list[str]]:
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: size)
        shares = []
        for rank in range(size):
            monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
            shares.append(list(process_group.share(items)))
        return shares

    assert parts(2, ["a", "b", "c"]) == [["a", "c"], ["b", "a"]]
    assert parts(3, ["a"]) == [["a"], ["a"], ["a"]]
    assert parts(2, []) == [[], []]


EARLY: dict[str, Any] = {
    "training": {
        "maxSteps": 20,
        "perDeviceBatchSize": 2,
        "gradientAccumulationSteps": 2,
        "maxLength": 48,
        "scheduler": "constant",
        "earlyStopping": {"patience": 2},
    },
    "evaluation": {"everySteps": 1},
    "checkpoint": {"everySteps": 2},
}


@pytest.mark.parametrize(
    ("method", "learning_rate"),
    [
        ({"lora": {"rank": 4, "dropout": 0.2}}, 0.1),
        ({"adalora": {"initRank": 6, "targetRank": 3}}, 0.1),
        pytest.param({"full": {}}, 0.03, marks=pytest.mark.exhaustive),
    ],
    ids=["lora", "adalora", "full"],
)
def test_an_early_stop_publishes_the_best_weights_bit_for_bit_also_after_interruptions(
    workbench: Callable[[], Workbench], method: dict[str, Any], learning_rate: float
) -> None:
    training = EARLY["training"] | {"learningRate": learning_rate}
    spec = EARLY | {"method": method, "training": training}
    uninterrupted, resumed, short = workbench(), workbench(), workbench()
    result, run = train(uninterrupted.settings(**spec))
    assert result.reason == "Succeeded", result.message
    assert result.evaluation is not None
    assert run.progress is not None
    best, stopped = result.evaluation.step, run.progress.step
    assert best is not None
    history = [json.loads(line) for line in uninterrupted.read("team/job/adapter/metrics.jsonl").splitlines()]
    losses = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    assert best == min(losses, key=lambda step: losses[step])
    assert best + 2 == stopped < 20, losses
    assert result.evaluation.loss == pytest.approx(losses[best], abs=1e-4), "the adapter has the best weights"
    assert run.progress.eta_seconds == 0

    for step in (best - 1, best + 1, stopped):
        interrupted = train_until(resumed.settings(**spec), step)
        assert interrupted.reason == "Preempted", interrupted.message
    result, _ = train(resumed.settings(**spec))
    assert (result.reason, result.resumed_from_step) == ("Succeeded", stopped)
    assert result.evaluation is not None
    assert result.evaluation.step == best
    assert weights_of(resumed) == weights_of(uninterrupted)
    assert resumed.read("team/job/adapter/metrics.jsonl").count(b"eval_loss") == stopped

    if "adalora" in method:  # whose schedule of ranks hangs on the number of steps
        return
    to_the_best = {name: value for name, value in training.items() if name != "earlyStopping"} | {"maxSteps": best}
    train(short.settings(method=method, training=to_the_best))
    assert weights_of(short) == weights_of(uninterrupted), "those of a run that ended there"


def test_each_pass_over_the_dataset_is_evaluated(bench: Workbench) -> None:
    training = {name: value for name, value in bench.job()["spec"]["training"].items() if name != "maxSteps"}
    result, run = train(bench.settings(training=training | {"epochs": 2}, evaluation={"everyEpoch": True}))
    assert result.reason == "Succeeded", result.message
    assert run.progress is not None
    history = [json.loads(line) for line in bench.read("team/job/adapter/metrics.jsonl").splitlines()]
    total = run.progress.total_steps
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [total // 2, total]


def test_the_last_weights_may_be_the_best(bench: Workbench) -> None:
    result, _ = train(bench.settings(evaluation={"everySteps": 4, "selectBest": True}))
    assert result.reason == "Succeeded", result.message
    assert result.evaluation is not None
    assert result.evaluation.step == 6
    assert b"The weights are those of step 6, which had the lowest loss on" in bench.read(
        "team/job/adapter/report.html"
    )


def test_what_the_training_cost_is_measured_on_a_general_text(bench: Workbench) -> None:
    bench.dataset("The miller said that the dyke would hold. " * 40, "general.txt")
    evaluation = {"everySteps": 2, "forgetting": {"uri": "configmap://data/general.txt", "maxSequences": 3}}
    training = bench.job()["spec"]["training"]
    result, _ = train(bench.settings(evaluation=evaluation, training=training | {"learningRate": 1e-2}))
    assert result.reason == "Succeeded", result.message
    assert result.evaluation is not None
    forgetting = result.evaluation.forgetting
    assert forgetting is not None
    assert forgetting.sequences == 3
    assert forgetting.loss != forgetting.base_loss
    assert forgetting.increase_percent == pytest.approx(100 * (forgetting.loss / forgetting.base_loss - 1), abs=0.01)
    assert forgetting.perplexity == pytest.approx(math.exp(forgetting.loss), rel=1e-4)
    assert b"Perplexity on a general text" in bench.read("team/job/adapter/report.html")
    assert b"Perplexity on a general text" in bench.read("team/job/adapter/README.md")
    entries = [json.loads(line) for line in bench.read("team/job/adapter/metrics.jsonl").splitlines()]
    on_the_way = {entry["step"]: entry["general_loss"] for entry in entries if "general_loss" in entry}
    assert sorted(on_the_way) == [2, 4, 6]
    assert on_the_way[6] == pytest.approx(forgetting.loss, abs=1e-4)
    assert b"Loss on a general text over the steps" in bench.read("team/job/adapter/report.html")


def test_the_text_that_comes_with_the_trainer_is_long_enough_to_say_something(bench: Workbench) -> None:
    from transformers import AutoTokenizer

    settings = bench.settings(evaluation={"forgetting": {"maxSequences": 1000}})
    tokenizer = AutoTokenizer.from_pretrained(bench.mounts / "claims" / "models" / "tiny")
    encoded = forgetting.encode_text(settings.job.spec, forgetting_text.download(settings, 1), tokenizer)
    assert sum(example.learned for example in encoded) > 1000
    assert (
        forgetting.encode_text(bench.settings().job.spec, forgetting_text.download(bench.settings(), 1), tokenizer)
        == []
    )


@pytest.mark.parametrize(
    ("content", "reason", "text"),
    [
        (None, Reason.DATASET_NOT_FOUND, "no key 'general.txt'"),
        (b"\xff\xfe\xff", Reason.DATASET_INVALID, "is not UTF-8 text after line 0"),
    ],
    ids=["missing", "no text"],
)
def test_a_general_text_that_cannot_be_read_is_found_before_the_training(
    bench: Workbench, content: bytes | None, reason: Reason, text: str
) -> None:
    if content is not None:
        bench.dataset(content, "general.txt")
    settings = bench.settings(evaluation={"forgetting": {"uri": "configmap://data/general.txt"}})
    problems = check(settings, patience_seconds=1).problems
    assert [(problem.reason, problem.field) for problem in problems] == [(reason, "spec.evaluation.forgetting.uri")]
    assert text in problems[0].message


def weights_of(bench: Workbench) -> bytes:
    """Return the finished weights, of an adapter or of a whole model."""
    (key,) = [key for key in bench.objects() if "/adapter/" in key and key.endswith(".safetensors")]
    return bench.read(key)
