"""The objectives that learn from preferences: trained, measured, verified and resumed like any other."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import datasets  # type: ignore[import-untyped]
import pytest
import torch

from finetune_api.dataset import DatasetSource
from finetune_api.finetunejob import FineTuneJob, FineTuneJobSpec, Objective
from finetune_trainer.checkpoints import resuming
from finetune_trainer.data import dataset, token_cache
from finetune_trainer.data.sources import Inputs, LocalData
from finetune_trainer.data.tokenizer import load_tokenizer
from finetune_trainer.evaluation import measures
from finetune_trainer.models.loading import load_base
from finetune_trainer.training import objectives
from tests.api.objects import FINETUNE_JOB, changed
from tools.testing.trainer_jobs import Workbench, jsonl, train, train_until

PAIRS: list[dict[str, Any]] = [
    {"prompt": f"What follows {number}?\n", "chosen": f"It is {number + 1}.", "rejected": f"Not {number}, no, no!"}
    for number in range(24)
]
CHAT_PAIRS = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }
    for row in PAIRS
]
LABELLED = [
    {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
    for number, row in enumerate(PAIRS)
    for name in (("chosen", "rejected") if number % 2 else ("rejected", "chosen"))
]
DATA: dict[str, list[dict[str, Any]]] = {"dpo": CHAT_PAIRS, "orpo": PAIRS, "kto": LABELLED, "reward": PAIRS}
OBJECTIVES = pytest.mark.parametrize("objective", ["dpo", "orpo", "kto", "reward"])


def spec(bench: Workbench, objective: str) -> dict[str, Any]:
    """Return the sections of a job that learns from preferences."""
    bench.dataset(jsonl(DATA[objective]))
    return {
        "objective": objective,
        **({} if objective == "reward" else {"preference": {"beta": 0.3}}),
        "training": bench.job()["spec"]["training"] | {"learningRate": 1e-2, "maxLength": 64, "maxSteps": 8},
        "method": {"lora": {"rank": 4}},
        "evaluation": {"everySteps": 4},
    }


@pytest.mark.parametrize(
    "method",
    [
        {"ia3": {}},
        {"prefixTuning": {"numVirtualTokens": 4}},
        {"full": {}},
        pytest.param({"dora": {"rank": 4}}, marks=pytest.mark.exhaustive),
        pytest.param({"vera": {"rank": 16}}, marks=pytest.mark.exhaustive),
        pytest.param({"promptTuning": {"numVirtualTokens": 4}}, marks=pytest.mark.exhaustive),
        pytest.param({"bottleneck": {}}, marks=pytest.mark.exhaustive),
    ],
    ids=lambda method: next(iter(method)),
)
def test_every_kind_of_method_learns_from_pairs(bench: Workbench, method: dict[str, Any]) -> None:
    sections = spec(bench, "dpo") | {"method": method, "evaluation": {"samples": 0}}
    # a prefix begins with random keys and values, far from the base
    steps = 30 if "prefixTuning" in method else 3
    sections["training"] |= {"maxSteps": steps, "learningRate": 1e-3 if "full" in method else 1e-2}
    result, _ = train(bench.settings(**sections))
    assert result.reason == "Succeeded", result.message
    assert result.evaluation is not None
    assert result.evaluation.loss < result.evaluation.base_loss


@OBJECTIVES
def test_preferences_are_learned_and_an_interruption_changes_nothing(
    workbench: Callable[[], Workbench], objective: str
) -> None:
    uninterrupted, interrupted = workbench(), workbench()
    result, run = train(uninterrupted.settings(**spec(uninterrupted, objective)))
    assert result.reason == "Succeeded", result.message
    evaluation = result.evaluation
    assert evaluation is not None
    assert evaluation.loss < evaluation.base_loss
    assert evaluation.accuracy is not None
    assert evaluation.accuracy > 0.8
    assert run.progress is not None
    assert run.progress.eval_loss is not None
    assert run.progress.eval_loss < evaluation.base_loss
    assert not [key for key in uninterrupted.objects() if "/ref/" in key], "TRL's copy of the adapter is no part of it"
    config = spec(interrupted, objective)
    assert train_until(interrupted.settings(**config), 3).reason == "Preempted"
    resumed, _ = train(interrupted.settings(**config))
    assert (resumed.reason, resumed.resumed_from_step) == ("Succeeded", 3)
    assert interrupted.weights() == uninterrupted.weights()


def test_the_loop_and_the_end_compare_with_the_adapter_that_the_training_starts_from(bench: Workbench) -> None:
    sections = spec(bench, "dpo")
    first, _ = train(bench.settings(**sections))
    assert first.adapter is not None
    job = bench.job(**sections)
    job["spec"]["output"]["s3"]["prefix"] = "team/second"
    job["spec"]["model"] |= {"adapter": {"uri": first.adapter.uri}}
    job["spec"]["training"]["learningRate"] = 1e-9
    second, run = train(bench.settings_of(job))
    assert second.reason == "Succeeded", second.message
    assert second.evaluation is not None
    assert run.progress is not None
    assert second.evaluation.loss == run.progress.eval_loss == pytest.approx(math.log(2), abs=1e-4)
    assert second.evaluation.base_loss > second.evaluation.loss, "the base lacks what the first training taught"


@OBJECTIVES
def test_held_out_rows_are_measured_as_trl_measures(objective: str, base_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    job = FineTuneJob.of(
        {
            "metadata": {"name": "job"},
            "spec": {
                "model": {"uri": "pvc://models/tiny"},
                "dataset": {"uri": "configmap://data/train.jsonl"},
                "objective": objective,
                **({} if objective == "reward" else {"preference": {"beta": 0.7}}),
                "training": {"perDeviceBatchSize": 6, "maxLength": 64},
                "output": {"s3": {"bucket": "adapters"}},
            },
        }
    )
    path = tmp_path / "train.jsonl"
    path.write_text(jsonl(DATA[objective][:6] if objective == "kto" else DATA[objective][:1]))
    tokenizer = load_tokenizer(base_model)
    source = DatasetSource.model_validate(
        {"uri": "configmap://data/train.jsonl", "validation": {"uri": "configmap://data/train.jsonl"}}
    )
    data = LocalData(source.uri, (path,))
    request = token_cache.DatasetRequest(source, cast(Objective, objective), 64, 1, 200)
    examples = dataset.prepare_dataset(request, Inputs(base_model, None, data, data), tokenizer, tmp_path / "tokens")
    rows: datasets.Dataset = examples.train
    reward = objective == "reward"
    base = load_base(base_model, torch.float32, scores_padded_with=tokenizer.pad_token_id if reward else None)
    model = get_peft_model(
        base, LoraConfig(task_type="SEQ_CLS" if reward else "CAUSAL_LM", target_modules="all-linear")
    )
    kind = objectives.objective_of(job.spec)
    arguments = kind.config(
        output_dir=str(tmp_path), per_device_train_batch_size=6, use_cpu=True, bf16=False, report_to="none",
        data_seed=1, disable_tqdm=True, **kind.settings,
    )  # fmt: skip
    trainer = kind.trainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
    order = [dict(row) for row in trainer.train_dataset] if objective == "kto" else examples.held_out_rows
    measure = measures.make_measure(job.spec, examples.held_out, order)
    measure(model)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B.default" in name or "score.modules_to_save.default" in name:
                weight.normal_(0, 0.1)
        trainer.model.eval()
        expected = float(trainer.compute_loss(trainer.model, batch))
    assert measure(model).loss == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx({"kto": 0.5, "orpo": 0.0}.get(objective, 0.6931), abs=1e-3), "it says something"


def test_the_pairs_of_kto_and_its_fingerprint_do_not_change_with_the_batch() -> None:
    rows = datasets.Dataset.from_list([{"completion_ids": [number]} for number in range(24)])

    def pairs(batch: int, accumulation: int) -> list[dict[str, Any]]:
        arguments = SimpleNamespace(
            data_seed=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            world_size=2,
        )
        return list(objectives._Kto._prepare_dataset(cast(Any, None), rows, None, cast(Any, arguments), "train"))

    assert pairs(4, 1) == pairs(1, 4)
    assert all(row["completion_ids"] != row["KL_completion_ids"] for row in pairs(1, 1)), "the answers of others"

    def fingerprint(batch: int) -> dict[str, Any]:
        training = {"perDeviceBatchSize": batch, "gradientAccumulationSteps": 8 // batch}
        job = changed(FINETUNE_JOB, {"spec.objective": "kto", "spec.training": training})
        return resuming.fingerprint_training(FineTuneJobSpec.model_validate(job["spec"]))

    assert fingerprint(4) == fingerprint(2)


@pytest.mark.parametrize("method", [{"qlora": {"rank": 4}}, {"dora": {"rank": 4}}], ids=["qlora", "dora"])
def test_a_reward_model_in_bf16(bench: Workbench, method: dict[str, Any]) -> None:
    sections = spec(bench, "reward")
    sections |= {"method": method, "training": sections["training"] | {"precision": "bf16"}}
    result, _ = train(bench.settings(**sections))
    assert result.reason == "Succeeded", result.message
    assert result.evaluation is not None
    assert (result.evaluation.base_loss, result.evaluation.base_accuracy) == (0.69315, 0.0)
    assert result.evaluation.loss < 0.6
    manifest = bench.manifest()
    assert manifest.servable_by == []
    assert "golden.json" not in [file.path for file in manifest.files], "it writes no texts that could be compared"
    config = json.loads(bench.read("team/job/adapter/adapter_config.json"))
    assert config["task_type"] == "SEQ_CLS"
    assert "score" in config["modules_to_save"]
    assert not [key for key in bench.objects() if "/merged/" in key]


def test_dropout_has_no_effect_where_answers_are_compared_and_the_job_says_so(
    workbench: Callable[[], Workbench],
) -> None:
    def trained(dropout: float) -> tuple[bytes, list[str]]:
        bench = workbench()
        sections = spec(bench, "dpo") | {"method": {"bottleneck": {"dropout": dropout}}, "evaluation": {}}
        result, run = train(bench.settings(**sections))
        assert result.reason == "Succeeded", result.message
        return bench.weights(), run.warnings

    with_dropout, warnings = trained(0.5)
    assert any("spec.method.bottleneck.dropout 0.5 has no effect" in warning for warning in warnings)
    without, warnings = trained(0.0)
    assert not any("dropout" in warning for warning in warnings)
    assert with_dropout == without
