"""Options that decide ranks and scales become part of the published weights; how exact that is, is measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from finetune_engines.vllm.versions import judge_version
from finetune_trainer.methods.conversion import list_foldable, low_rank_factors, measure_folding, write_lora
from finetune_trainer.models.loading import load_base
from tools.testing.trainer_jobs import Workbench, train

OPTIONS: dict[str, Any] = {
    "useRslora": True,
    "rank": 4,
    "alpha": 8,
    "dropout": 0.0,
    "targetModules": ["q_proj", "v_proj"],
    "rankPattern": {"v_proj": 16},
    "alphaPattern": {r"layers\.0\..*q_proj": 64},
}


def adapted(base_model: Path, **options: Any) -> PeftModel:
    """Return the tiny base with a LoRA of random weights, none of which is zero."""
    torch.manual_seed(1)
    model = get_peft_model(load_base(base_model, torch.float32), LoraConfig(task_type="CAUSAL_LM", **options))
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return model


def fold(model: PeftModel, directory: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the weights and the configuration that are published."""
    factors = low_rank_factors(model)
    assert factors is not None
    write_lora(factors, [name for name, _ in model.get_base_model().named_modules()], directory)
    config = json.loads((directory / "adapter_config.json").read_text())
    return load_file(directory / "adapter_model.safetensors"), config


def exact_updates(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return the update of each module in fp64, as PEFT scales it."""
    return {
        name: module.lora_B["default"].weight.double() @ module.lora_A["default"].weight.double()
        * module.scaling["default"]
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }  # fmt: skip


POWERS = {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["q_proj", "v_proj"],
          "rank_pattern": {"v_proj": 16}, "alpha_pattern": {"q_proj": 32}}  # fmt: skip


def test_scales_that_are_powers_of_two_are_folded_without_an_error(base_model: Path, tmp_path: Path) -> None:
    model = adapted(base_model, **POWERS)
    assert list_foldable(model) == ["use_rslora", "rank_pattern", "alpha_pattern"]
    assert measure_folding(model) == 0.0
    weights, config = fold(model, tmp_path)
    assert config["lora_alpha"] == config["r"] == 16
    assert not any(config[name] for name in ("use_rslora", "rank_pattern", "alpha_pattern"))
    for name, update in exact_updates(model).items():
        a, b = (weights[f"{name}.lora_{half}.weight"] for half in "AB")
        assert len(a) == 16
        assert torch.equal(b.double() @ a.double(), update)


def test_other_scales_round_each_number_of_b_once(base_model: Path, tmp_path: Path) -> None:
    model = adapted(base_model, **POWERS | {"r": 8, "lora_alpha": 12})
    error = measure_folding(model)
    assert 0.0 < error <= 2.0**-24
    weights, _ = fold(model, tmp_path)
    for name, update in exact_updates(model).items():
        a, b = (weights[f"{name}.lora_{half}.weight"].double() for half in "AB")
        assert ((b @ a - update).abs() <= error * (b.abs() @ a.abs()) * (1 + 1e-6)).all()


@pytest.mark.parametrize(
    "more",
    [
        {"use_dora": True},
        {"bias": "lora_only"},
        {"modules_to_save": ["norm"]},
        {"target_modules": ["q_proj", "v_proj", "embed_tokens"]},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_is_more_than_two_factors_stays_as_it_is(base_model: Path, more: dict[str, Any]) -> None:
    assert low_rank_factors(adapted(base_model, **POWERS | more)) is None


def test_a_lora_without_such_options_stays_as_it_is(base_model: Path) -> None:
    assert low_rank_factors(adapted(base_model, r=4, lora_alpha=8, target_modules=["q_proj"])) is None


def test_a_folded_lora_is_served_by_every_version_and_training_continues_from_it(bench: Workbench) -> None:
    first, _ = train(bench.settings(method={"lora": OPTIONS}))
    assert first.reason == "Succeeded", first.message
    assert first.adapter is not None
    manifest = bench.manifest()
    assert manifest.folded == ["use_rslora", "rank_pattern", "alpha_pattern"]
    assert manifest.verification["foldingError"] == 0.0
    assert (manifest.rank, manifest.alpha, manifest.peft_type) == (16, 16, "LORA")
    assert manifest.servable_by == ["vllm", "sglang"]
    published = json.loads(bench.read("team/job/adapter/adapter_config.json"))
    assert judge_version("0.11.0").find_misserved(published) == []
    trained = json.loads(bench.read("team/job/trained/adapter_config.json"))
    assert len(judge_version("0.11.0").find_misserved(trained)) == 1
    job = bench.job(method={"lora": OPTIONS})
    job["spec"]["model"] |= {"adapter": {"uri": first.adapter.uri, "digest": first.adapter.digest}}
    job["spec"]["output"]["s3"]["prefix"] = "team/more"
    job["spec"]["training"]["learningRate"] = 1e-12
    second, _ = train(bench.settings_of(job))
    assert second.reason == "Succeeded", second.message
    buckets = bench.server.buckets / bench.bucket / "team"
    before, after = (load_file(buckets / name / "trained" / "adapter_model.safetensors") for name in ("job", "more"))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=1e-6, rtol=0)
