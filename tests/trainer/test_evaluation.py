"""What is measured on the held-out rows, and what is decided by it: the gate before publishing."""

import math
from typing import Any

import pytest

from finetune_api.finetunejob import EvaluationStatus
from finetune_api.gate import Gate
from finetune_api.manifest import AdapterManifest
from finetune_api.reasons import EXIT_CODES, Reason
from finetune_trainer import gate
from finetune_trainer.train import exit_code
from tests.trainer.jobs import Workbench, train

MEASURED = EvaluationStatus(
    base_loss=4.0, loss=3.0, improvement_percent=25.0, rows=20, base_perplexity=54.59815, perplexity=20.08554
)


@pytest.mark.parametrize(
    ("limits", "refusal"),
    [
        ({"max": 3.0}, None),
        ({"max": 2.9}, "the held-out loss is 3, wanted at most 2.9"),
        ({"minImprovementPercent": 25.0}, None),
        (
            {"minImprovementPercent": 30.0},
            "the held-out loss is 25 % lower than the base's 4, wanted at least 30 % lower",
        ),
        ({"metric": "perplexity", "max": 20.0}, "the held-out perplexity is 20.0855, wanted at most 20"),
        ({"metric": "perplexity", "minImprovementPercent": 60.0}, None),
        (
            {"max": 1.0, "minImprovementPercent": 50.0},
            "the held-out loss is 3, wanted at most 1, and is 25 % lower than the base's 4, wanted at least 50 % lower",
        ),
    ],
)
def test_the_gate_says_what_was_found_and_what_was_wanted(limits: dict[str, Any], refusal: str | None) -> None:
    judged, said = gate.judge(Gate.model_validate(limits), MEASURED)
    assert said == refusal
    assert judged.passed is (refusal is None)


def test_an_adapter_that_is_worse_than_its_base_passes_no_improvement() -> None:
    worse = EvaluationStatus(base_loss=2.0, loss=2.5, improvement_percent=-25.0, rows=20)
    _, said = gate.judge(Gate(min_improvement_percent=0), worse)
    assert said == "the held-out loss is 25 % higher than the base's 2, wanted at least 0 % lower"


def test_without_a_gate_nothing_is_judged() -> None:
    assert gate.judge(None, MEASURED) == (MEASURED, None)


def test_a_rejected_adapter_is_kept_but_not_published_and_a_milder_gate_lets_it_through(bench: Workbench) -> None:
    strict = {"gate": {"metric": "perplexity", "max": 1.01}}
    result, _ = train(bench.settings(evaluation=strict, output=bench.job()["spec"]["output"] | {"mergedModel": True}))
    assert (result.reason, exit_code(result)) == (Reason.GATE_FAILED, EXIT_CODES[Reason.GATE_FAILED])
    assert result.adapter is None
    assert result.evaluation is not None
    assert result.evaluation.passed is False
    assert result.evaluation.perplexity == pytest.approx(math.exp(result.evaluation.loss), rel=1e-4)
    assert result.evaluation.base_perplexity == pytest.approx(math.exp(result.evaluation.base_loss), rel=1e-4)
    place = f"s3://{bench.bucket}/team/job/rejected"
    assert f"spec.evaluation.gate: the held-out perplexity is {result.evaluation.perplexity:.6g}" in result.message
    assert f"wanted at most 1.01: the adapter is not published, but kept with its report in {place}" in result.message
    assert result.report is not None
    assert result.report.uri == f"{place}/report.html"
    kept = [key.removeprefix("team/job/") for key in bench.objects() if "/checkpoints/" not in key]
    assert {key.split("/")[0] for key in kept} == {"rejected"}, "nothing is where a published adapter is looked for"
    manifest = AdapterManifest.model_validate_json(bench.read("team/job/rejected/manifest.json"))
    assert manifest.evaluation == result.evaluation
    assert {f"rejected/{file.path}" for file in manifest.files} == set(kept) - {"rejected/manifest.json"}
    weights = bench.read("team/job/rejected/adapter_model.safetensors")

    again, _ = train(bench.settings(evaluation=strict))
    assert (again.reason, again.resumed_from_step) == (Reason.GATE_FAILED, 6), "cut off, it takes its own place"

    result, _ = train(bench.settings(evaluation={"gate": {"minImprovementPercent": 0.01}}))
    assert result.reason == "Succeeded", result.message
    assert result.evaluation is not None
    assert (result.evaluation.passed, result.resumed_from_step) == (True, 6)
    assert bench.weights() == weights
