"""Models whose files use other names than their modules, and mixtures of experts: what is trained is what is saved."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.reasons import Reason
from finetune_trainer.evaluation import verification
from finetune_trainer.merge import merge_adapter
from finetune_trainer.models import loading, saving
from finetune_trainer.runtime.failures import Failure
from tools.testing.tiny_model import change_config, make_tiny_model
from tools.testing.trainer_jobs import Workbench, train

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": EXPERTS,
    "gpt_neox": {"num_key_value_heads": None},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8},
    "deepseek_v3": {
        "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
        "v_head_dim": 8, "num_key_value_heads": 4,
    },
    "granitemoe": EXPERTS,
    "granitemoeshared": EXPERTS | {"shared_intermediate_size": 32},
    "phimoe": EXPERTS,
    "llama4_text": EXPERTS | {"head_dim": 8, "intermediate_size_mlp": 64, "num_experts_per_tok": 1},
}  # fmt: skip
LLAMA_2 = {"temperature": 0.9, "top_p": 0.6, "eos_token_id": "1"}
"""The generation_config.json of Llama 2, with a text where a number belongs."""


def make_model(directory: Path, kind: str, **changes: Any) -> Path:
    """Save a small model of this kind with the tiny model's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    size = json.loads((make_tiny_model(directory) / "config.json").read_text())["vocab_size"]
    sizes = {name: value for name, value in (SIZES | KINDS[kind]).items() if value is not None}
    config = AutoConfig.for_model(kind, vocab_size=size, bos_token_id=0, eos_token_id=1, pad_token_id=0, **sizes)
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    change_config(directory, **changes)
    return directory


@pytest.fixture
def settings_of(bench: Workbench, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that makes the settings of a job of two steps for the model in ``tmp_path / "model"``."""

    def make(**spec: Any) -> Any:
        (bench.mounts / "claims" / "own").symlink_to(tmp_path / "model")
        training = bench.job()["spec"]["training"] | {"maxSteps": 2}
        return bench.settings(model={"uri": "pvc://own"}, training=training, **spec)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_all_weights_of_a_model_are_saved_bit_for_bit_whatever_the_files_call_them(
    kind: str, tmp_path: Path, libraries: None
) -> None:
    model = loading.load_base(make_model(tmp_path / "model", kind), torch.bfloat16)
    for parameter in model.parameters():
        parameter.data = parameter.data.float() + 0.01 * torch.randn(parameter.shape)
    verification.save_weights(model, tmp_path / "saved", torch.bfloat16)
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    with pytest.raises(Failure, match=r"the saved model, loaded again, is not the trained one: .* differs") as caught:
        saving.check_saved_model(model, tmp_path / "saved")
    assert caught.value.reason is Reason.VERIFICATION_FAILED


def test_a_model_that_cannot_be_loaded_again_is_not_published(tmp_path: Path, libraries: None) -> None:
    model = loading.load_base(make_tiny_model(tmp_path / "model"), torch.float32)
    saving.save_model(model, tmp_path / "saved")
    change_config(tmp_path / "saved", hidden_act="none such")
    with pytest.raises(Failure, match="is not the trained one: transformers cannot load it"):
        saving.check_saved_model(model, tmp_path / "saved")


@pytest.mark.parametrize("value", [float("nan"), 1e30], ids=["not a number", "too large for fp16"])
def test_a_weight_that_is_not_finite_in_the_saved_precision_is_divergence(
    value: float, tmp_path: Path, libraries: None
) -> None:
    model = loading.load_base(make_tiny_model(tmp_path / "model"), torch.float32)
    next(model.parameters()).data[0, 0] = value
    with pytest.raises(Failure, match=r"embed_tokens\.weight is not finite") as caught:
        verification.save_weights(model, tmp_path / "saved", torch.float16)
    assert caught.value.reason is Reason.LOSS_DIVERGED


def test_all_weights_of_a_mixture_of_experts_are_trained_and_published(
    bench: Workbench, settings_of: Callable[..., Any], tmp_path: Path
) -> None:
    make_model(tmp_path / "model", "mixtral")
    result, _ = train(settings_of(method={"full": {}}))
    assert result.reason == "Succeeded", result.message
    assert "team/job/adapter/model.safetensors" in bench.objects()


@pytest.mark.parametrize("merged", [False, True], ids=["all weights", "merged"])
def test_a_generation_config_that_transformers_does_not_save_is_the_bases(
    bench: Workbench, settings_of: Callable[..., Any], tmp_path: Path, merged: bool
) -> None:
    make_tiny_model(tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(LLAMA_2))
    output = bench.job()["spec"]["output"] | {"mergedModel": merged}
    settings = settings_of(method={"lora": {"rank": 4}} if merged else {"full": {}}, output=output)
    result, _ = train(settings)
    assert result.reason == "Succeeded", result.message
    if merged:
        outcome = merge_adapter(settings)
        assert outcome.reason == "Succeeded", outcome.message
    directory = "merged" if merged else "adapter"
    assert json.loads(bench.read(f"team/job/{directory}/generation_config.json")) == LLAMA_2


@pytest.mark.parametrize("kind", ["granitemoe", "granitemoeshared", "phimoe", "llama4_text"])
def test_a_mixture_of_experts_is_trained_without_its_routers_loss(
    settings_of: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    make_model(tmp_path / "model", kind, output_router_logits=True)
    result, _ = train(settings_of(method={"lora": {"rank": 4, "targetModules": ["q_proj", "v_proj"]}}))
    assert result.reason == "Succeeded", result.message


def test_learned_tokens_fit_a_mixture_of_experts(settings_of: Callable[..., Any], tmp_path: Path) -> None:
    make_model(tmp_path / "model", "mixtral", output_router_logits=True)
    result, _ = train(settings_of(method={"prefixTuning": {"numVirtualTokens": 4}}))
    assert result.reason == "Succeeded", result.message
