"""The activations against the tensors that a CPU really holds, and the parts against what they are made of."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from transformers import AutoConfig, AutoModelForCausalLM

from finetune_api.estimate.activations import layer_activations
from finetune_api.estimate.architecture import architecture_of
from finetune_api.estimate.memory import GIB, evaluation_bytes, memory, optimizer_bytes, outside_bytes, quantised_bytes
from finetune_api.estimate.modules import Architecture, Module
from finetune_api.estimate.step import Step
from finetune_api.finetunejob import Training
from finetune_api.methods import Method, Quantization
from finetune_trainer.data.dataset import Example
from finetune_trainer.evaluation.likelihood import mean_loss
from finetune_trainer.methods.adapted_model import add_adapter, to_float32
from finetune_trainer.methods.peft_config import BaseInfo
from finetune_trainer.models import packed_attention
from finetune_trainer.models.loading import load_base, make_quantization_config
from tests.estimate.measure import MemoryUse, Storages, measure
from tools.testing.llama_8b import LLAMA_8B

LAYERS, BATCH, LENGTH = 3, 2, 256
SIZES: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"rank": 8}},
    "lora on all": {"lora": {"rank": 8, "targetModules": "all-linear"}},
    "lora on two": {"lora": {"rank": 8, "targetModules": ["q_proj", "v_proj"]}},
    "qlora": {"qlora": {"rank": 8}},
    "dora": {"dora": {"rank": 8}},
    "adalora": {"adalora": {"initRank": 8, "targetRank": 4}},
    "ia3": {"ia3": {}},
    "vera": {"vera": {"rank": 32}},
    "loha": {"loha": {"rank": 8}},
    "lokr": {"lokr": {"rank": 8}},
    "oft": {"oft": {}},
    "miss": {"miss": {"rank": 16}},
    "houlsby": {"bottleneck": {"reductionFactor": 4}},
    "pfeiffer": {"bottleneck": {"reductionFactor": 4, "placement": "pfeiffer"}},
    "prompt": {"promptTuning": {"numVirtualTokens": 32}},
    "p-tuning": {"pTuning": {"numVirtualTokens": 32}},
    "prefix": {"prefixTuning": {"numVirtualTokens": 32}},
    "full": {"full": {}},
}
BEFORE_THE_TEXT = ("prompt", "p-tuning", "prefix")


def measured(
    model_type: str,
    sizes: dict[str, Any],
    method: str,
    *,
    checkpointing: bool,
    mixed: bool,
    base: Any = None,
    batch: int = BATCH,
    length: int = LENGTH,
) -> tuple[MemoryUse, Architecture]:
    """Measure what a small model really holds; return it with the architecture."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **sizes)
    dtype = torch.bfloat16 if mixed and method != "full" else torch.float32
    if base is None:
        base = AutoModelForCausalLM.from_config(config, dtype=dtype)
    base.config.use_cache = False
    model = add_adapter(base, Method.model_validate(METHODS[method]), BaseInfo(Path(), None, total_steps=100))
    to_float32(model)
    if checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
    model.train()

    def backbone(ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor
        if method in BEFORE_THE_TEXT:
            base.lm_head = torch.nn.Identity()
            hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        else:
            hidden = base.base_model(input_ids=ids).last_hidden_state
        return hidden

    content = json.loads(config.to_json_string())
    return measure(model, backbone, batch=batch, length=length, mixed=mixed), architecture_of(content)


def calculated(
    architecture: Architecture,
    method: str,
    *,
    checkpointing: bool,
    mixed: bool,
    batch: int = BATCH,
    length: int = LENGTH,
) -> MemoryUse:
    """Calculate the same by the closed form: layers, last norm and last hidden states."""
    block = Method.model_validate(METHODS[method])
    step = Step(batch, length, mixed)
    layer = layer_activations(architecture, block, step)
    held_bytes = outside_bytes(architecture, block, step)
    held_bytes += architecture.layers * (layer.entry if checkpointing else layer.saved)
    return MemoryUse(round(held_bytes), round(held_bytes + (layer.saved if checkpointing else 0) + layer.transient))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("qlora", "lora on all")])
def test_the_activations_are_what_autograd_holds(method: str) -> None:
    measured_bytes, architecture = measured("llama", SIZES, method, checkpointing=False, mixed=True)
    expected = calculated(architecture, method, checkpointing=False, mixed=True)
    if method in ("houlsby", "pfeiffer"):
        # nothing before the first adapter is kept: of few layers that is much
        assert 1 < expected.held / measured_bytes.held < 1.1 * LAYERS / (LAYERS - 1)
        return
    assert expected.held == pytest.approx(measured_bytes.held, rel=0.06)
    assert 0.95 < expected.peak / measured_bytes.peak < 1.2


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("prefix", "qlora", "lora on all")])
def test_the_activations_with_checkpointing(method: str) -> None:
    """Prefix tuning cannot be trained so."""
    measured_bytes, architecture = measured("llama", SIZES, method, checkpointing=True, mixed=True)
    expected = calculated(architecture, method, checkpointing=True, mixed=True)
    assert expected.held == pytest.approx(measured_bytes.held, rel=0.1)
    assert 0.9 < expected.peak / measured_bytes.peak < 1.25


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_activations_on_a_quantised_base(checkpointing: bool, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES), dtype=torch.bfloat16).save_pretrained(
        tmp_path
    )
    method = Method.model_validate(METHODS["qlora"])
    base = load_base(tmp_path, torch.bfloat16, make_quantization_config(method, "bf16"))
    stored = sum(parameter.nbytes for parameter in base.parameters())
    measured_bytes, architecture = measured("llama", SIZES, "qlora", checkpointing=checkpointing, mixed=True, base=base)
    expected = calculated(architecture, "qlora", checkpointing=checkpointing, mixed=True)
    assert expected.held == pytest.approx(measured_bytes.held, rel=0.06)
    assert expected.peak == pytest.approx(measured_bytes.peak, rel=0.06)
    # what the blocks' maxima take lies beside the parameters
    assert stored == pytest.approx(memory(architecture, method, Training()).weights, rel=0.03)


GATED = {
    "mistral": SIZES | {"head_dim": 32},
    "qwen2": SIZES,
    "qwen3": SIZES | {"head_dim": 32},
    "gemma": SIZES | {"head_dim": 32},
    "gemma2": SIZES | {"head_dim": 32},
    "gemma3_text": SIZES | {"head_dim": 32},
    "phi3": SIZES | {"pad_token_id": 0},
    "olmo2": SIZES,
}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": SIZES | {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": SIZES
    | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "shared_expert_intermediate_size": 160},
    "qwen3_moe": SIZES | {"head_dim": 32, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96},
    "gpt_oss": SIZES | {"head_dim": 32, "num_local_experts": 8, "num_experts_per_tok": 2},
    "deepseek_v3": SIZES
    | {
        "num_key_value_heads": 4,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 96,
        "first_k_dense_replace": 0,
        "q_lora_rank": 48,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
    },
}
PLAIN: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 1000, "n_embd": 128, "n_head": 4, "n_layer": LAYERS, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
    "gpt_neox": {**SIZES, "intermediate_size": 512},
    "phi": {**SIZES, "intermediate_size": 512},
    "falcon": {"vocab_size": 1000, "hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": LAYERS},
    "bloom": {"vocab_size": 1000, "hidden_size": 128, "n_head": 4, "n_layer": LAYERS},
    "opt": {**SIZES, "ffn_dim": 512, "word_embed_proj_dim": 128, "dropout": 0.0},
}


@pytest.mark.parametrize("model_type", GATED)
def test_other_architectures_like_llama(model_type: str) -> None:
    measured_bytes, architecture = measured(model_type, GATED[model_type], "lora", checkpointing=False, mixed=True)
    expected = calculated(architecture, "lora", checkpointing=False, mixed=True)
    assert expected.held == pytest.approx(measured_bytes.held, rel=0.05)


@pytest.mark.parametrize("method", ["lora", "lora on all"])
@pytest.mark.parametrize("model_type", MIXTURES)
def test_mixtures_of_experts(model_type: str, method: str) -> None:
    """With all-linear PEFT adapts the experts of some; it then holds copies of their weights."""
    measured_bytes, architecture = measured(model_type, MIXTURES[model_type], method, checkpointing=False, mixed=True)
    expected = calculated(architecture, method, checkpointing=False, mixed=True)
    assert 0.95 < expected.held / measured_bytes.held < 1.25


@pytest.mark.parametrize("model_type", ["gemma2", "bloom"])
def test_all_scores_of_a_long_row(model_type: str) -> None:
    """Where attention is not fused, its scores outweigh all else."""
    sizes = GATED["gemma2"] if model_type == "gemma2" else PLAIN["bloom"]
    measured_bytes, architecture = measured(
        model_type, sizes, "lora", checkpointing=True, mixed=True, batch=1, length=1024
    )
    expected = calculated(architecture, "lora", checkpointing=True, mixed=True, batch=1, length=1024)
    assert 0.9 < expected.peak / measured_bytes.peak < 1.2


@pytest.mark.parametrize("model_type", PLAIN)
def test_architectures_without_a_gate_are_not_underestimated(model_type: str) -> None:
    """CUDA's autocast runs layer_norm and pow in fp32 and the CPU's does not, so that a CPU holds less of these."""
    measured_bytes, architecture = measured(model_type, PLAIN[model_type], "lora", checkpointing=False, mixed=True)
    expected = calculated(architecture, "lora", checkpointing=False, mixed=True)
    assert 0.98 < expected.held / measured_bytes.held < 1.6


@pytest.mark.parametrize("kind", ["padded", "packed", "one by one"])
def test_the_activations_with_a_mask(kind: str) -> None:
    """Padded rows have a mask as wide as a row; packed ones lie end to end, under a mask as wide as all of them.

    Attention that knows the borders of packed examples needs no mask.
    """
    packed = kind != "padded"
    config = AutoConfig.for_model("llama", **SIZES)
    base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    base.config.use_cache = False
    block = Method.model_validate(METHODS["lora"])
    borders: dict[str, Any] = {}
    if kind == "one by one":
        assert packed_attention.install(base)
        borders = packed_attention.describe_borders([LENGTH // 2] * 2 * BATCH, torch.device("cpu"))
    model = add_adapter(base, block, BaseInfo(Path(), None, total_steps=100)).train()
    to_float32(model)
    padding = torch.ones(BATCH, LENGTH, dtype=torch.long)
    padding[0, LENGTH // 2 :] = 0
    positions = torch.arange(LENGTH // 2).repeat(2 * BATCH)[None]

    def backbone(ids: torch.Tensor) -> torch.Tensor:
        settings = (
            {"input_ids": ids.reshape(1, -1), "position_ids": positions, **borders}
            if packed
            else {"input_ids": ids, "attention_mask": padding}
        )
        hidden: torch.Tensor = base.base_model(**settings).last_hidden_state
        return hidden

    measured_bytes = measure(model, backbone, batch=BATCH, length=LENGTH, mixed=True)
    step = Step(BATCH, LENGTH) if borders else Step(BATCH, LENGTH, masked=True, packed=packed)
    architecture = architecture_of(json.loads(config.to_json_string()))
    layer = layer_activations(architecture, block, step)
    expected = outside_bytes(architecture, block, step) + LAYERS * layer.saved
    assert expected == pytest.approx(measured_bytes.held, rel=0.05)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_activations_in_fp32(method: str) -> None:
    measured_bytes, architecture = measured("llama", SIZES, method, checkpointing=False, mixed=False)
    expected = calculated(architecture, method, checkpointing=False, mixed=False)
    assert expected.held == pytest.approx(measured_bytes.held, rel=0.05)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_the_weights_are_as_large_as_bitsandbytes_makes_them(kind: str, double: bool) -> None:
    from bitsandbytes.functional import quantize_4bit

    weight, state = quantize_4bit(
        torch.zeros(1024, 512, dtype=torch.bfloat16), quant_type=kind, compress_statistics=double
    )
    maxima = [state.absmax, *([state.state2.absmax] if double else [])]
    size = sum(tensor.numel() * tensor.element_size() for tensor in [weight, *maxima])
    module = Module("a", "linear", 512, 1024)
    quantization = Quantization.model_validate({"type": kind, "doubleQuantization": double})
    assert quantised_bytes(module, quantization) == size


def test_the_optimizers_state_is_as_large_as_torchs() -> None:
    weight = torch.nn.Parameter(torch.zeros(64, 64))
    weight.grad = torch.zeros_like(weight)
    optimizer = torch.optim.AdamW([weight])
    optimizer.step()
    state = sum(tensor.nbytes for tensor in optimizer.state[weight].values() if tensor.dim())
    assert state == optimizer_bytes("adamw_torch") * weight.numel()


def test_an_evaluation_holds_all_logits_of_a_row() -> None:
    sizes = SIZES | {"vocab_size": 6000, "hidden_size": 32, "intermediate_size": 64}
    config = AutoConfig.for_model("llama", **sizes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    row = list(range(200))
    with Storages([*model.parameters(), *model.buffers()]) as storages:
        mean_loss(model, [Example(row, row)])
    architecture = architecture_of(json.loads(config.to_json_string()))
    assert evaluation_bytes(architecture, 200) == pytest.approx(storages.peak, rel=0.05)


@cache
def llama() -> Architecture:
    """Llama-3.1-8B."""
    return architecture_of(LLAMA_8B)


def total(method: dict[str, Any], **training: Any) -> int:
    """Return bytes of a job on Llama-3.1-8B."""
    return memory(llama(), Method.model_validate(method), Training(**training)).total


def test_each_part_is_where_it_belongs() -> None:
    parts = memory(
        llama(), Method.model_validate({"lora": {}}), Training(gradient_checkpointing="always", optimizer="adamw_torch")
    )
    trainable = 41_943_040
    assert parts.weights == 2 * 8_030_261_248
    assert (parts.adapter, parts.gradients, parts.optimizer) == (4 * trainable, 4 * trainable, 8 * trainable)
    paged = memory(llama(), Method.model_validate({"lora": {}}), Training(optimizer="paged_adamw_8bit"))
    assert paged.optimizer == pytest.approx(2 * trainable, rel=0.02)
    full = memory(llama(), Method.model_validate({"full": {}}), Training(optimizer="adamw_torch_fused"))
    assert (full.weights, full.adapter, full.gradients) == (4 * 8_030_261_248, 0, 4 * 8_030_261_248)


def test_the_figures_of_the_source_documents() -> None:
    """An A100 with Llama-3.1-8B: LoRA of rank 16 in 18 GB, IA³ in 16 GB, full fine-tuning in more than 60 GB."""
    settings = {"gradient_checkpointing": "always", "max_length": 1024}
    assert total({"lora": {}}, **settings) == pytest.approx(18e9, rel=0.1)
    assert total({"ia3": {}}, **settings) == pytest.approx(16e9, rel=0.2)
    assert total({"full": {}}, **settings) > 60e9
    assert total({"qlora": {}}, **settings) < 10e9


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    some.integers(1, 256),
    some.integers(1, 16),
    some.integers(8, 4096),
    some.booleans(),
    some.sampled_from(["lora", "qlora", "dora", "loha", "lokr", "vera", "miss"]),
)
def test_more_is_never_less(rank: int, batch: int, length: int, checkpointing: bool, method: str) -> None:
    def needed(rank: int, batch: int, length: int, checkpointing: bool) -> int:
        training = {
            "gradient_checkpointing": "always" if checkpointing else "never",
            "per_device_batch_size": batch,
            "max_length": length,
        }
        return total({method: {"rank": rank}}, **training)

    base_need = needed(rank, batch, length, checkpointing)
    assert base_need <= needed(rank + 1, batch, length, checkpointing)
    assert base_need <= needed(rank, batch + 1, length, checkpointing)
    assert base_need <= needed(rank, batch, length + 1, checkpointing)
    assert needed(rank, batch, length, True) <= needed(rank, batch, length, False) + GIB // 100


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some.integers(1, 64), some.integers(8, 2048))
def test_a_quantised_base_is_smaller(batch: int, length: int) -> None:
    training = {"per_device_batch_size": batch, "max_length": length}
    assert total({"qlora": {}}, **training) < total({"lora": {}}, **training)
