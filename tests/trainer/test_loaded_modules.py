"""The preflight sees the modules of the loaded model: renamed, without towers and prediction layers, experts fused."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from finetune_api.finetunejob import FineTuneJob, FineTuneJobSpec, ObjectMeta
from finetune_api.methods import Method
from finetune_api.reasons import Reason
from finetune_artifacts.safetensors import Tensor
from finetune_trainer.methods.adapted_model import add_adapter
from finetune_trainer.methods.peft_config import BaseInfo
from finetune_trainer.models.base_files import ModelMetadata
from finetune_trainer.models.loaded_tensors import describe_loaded
from finetune_trainer.models.unmatched import check_all_matched
from finetune_trainer.preflight.findings import CheckResult
from finetune_trainer.preflight.model import add_estimate, check_modules
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.settings import Settings

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
FEW_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS = FEW_EXPERTS | {"num_experts": 4, "moe_intermediate_size": 16}
DELTA_NET = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
QWEN_VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "gpt_neox": SIZES,
    "mixtral": GROUPED | FEW_EXPERTS,
    "qwen3_moe": GROUPED | EXPERTS,
    "gpt_oss": GROUPED | FEW_EXPERTS,
    "olmoe": GROUPED | EXPERTS,
    "phimoe": GROUPED | FEW_EXPERTS,
    "granitemoe": GROUPED | FEW_EXPERTS,
    "afmoe": GROUPED | EXPERTS | {"num_dense_layers": 1},
    "deepseek_v3": SIZES | LATENT | {"num_nextn_predict_layers": 1},
    "qwen3_next": GROUPED | EXPERTS | DELTA_NET | {"shared_expert_intermediate_size": 16},
    "mamba": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "falcon_h1": GROUPED | {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1},
    "rwkv": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    "ctrl": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 64},
    "openai-gpt": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gemma3": {"text_config": GROUPED, "vision_config": VISION | {"image_size": 28, "patch_size": 14}},
    "gemma3n_text": GROUPED
    | {
        "intermediate_size": [48, 48],
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 64,
        "num_kv_shared_layers": 0,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0, 0.0],
        "altup_num_inputs": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "qwen3_5": {"text_config": GROUPED | DELTA_NET, "vision_config": QWEN_VISION},
    "lfm2": GROUPED | {"layer_types": ["conv", "full_attention"]},
    "mpt": {"vocab_size": 64, "d_model": 32, "n_heads": 4, "n_layers": 2},
    "opt": SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 16},
    "falcon": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
}
CLASSES = {"gemma3": "Gemma3ForConditionalGeneration", "qwen3_5": "Qwen3_5ForConditionalGeneration"}


def built(model_type: str) -> Any:
    """Return the model that the trainer loads, without memory."""
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(configuration(model_type))


def configuration(model_type: str) -> Any:
    return transformers.AutoConfig.for_model(model_type, **MODELS[model_type])


def published(model_type: str) -> ModelMetadata:
    """Return the configuration and the tensors of the files, with a vision tower and layers of further tokens."""
    config = configuration(model_type)
    with torch.device("meta"):
        kind = CLASSES.get(model_type)
        model = getattr(transformers, kind)(config) if kind else transformers.AutoModelForCausalLM.from_config(config)
    named = {name: value for name, value in model.state_dict().items() if name not in tied(model)}
    named = transformers.core_model_loading.revert_weight_conversion(model, named)
    tensors = {name: Tensor("F32", tuple(value.shape)) for name, value in named.items()}
    if model_type == "deepseek_v3":
        last = {name: tensor for name, tensor in tensors.items() if name.startswith("model.layers.1.")}
        tensors |= {name.replace(".1.", ".2.", 1): tensor for name, tensor in last.items()}
        tensors["model.layers.2.eh_proj.weight"] = Tensor("F32", (32, 64))
    if model_type == "qwen3_next":
        tensors |= {
            "mtp.fc.weight": Tensor("F32", (32, 64)),
            "mtp.layers.0.mlp.up_proj.weight": Tensor("F32", (16, 32)),
        }
    values = {**config.to_dict(), **({"word_embed_proj_dim": 16} if model_type == "opt" else {})}
    return ModelMetadata(values, tensors, has_tokenizer=True, has_chat_template=False)


def tied(model: Any) -> set[str]:
    return set(model.all_tied_weights_keys)


def check(model_type: str, method: dict[str, Any], training: dict[str, Any] | None = None) -> CheckResult:
    """Return what the preflight finds of this method on this model."""
    spec = FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "hf://acme/model"},
            "dataset": {"uri": "hf://acme/rows"},
            "output": {"s3": {"bucket": "adapters"}},
            "method": method,
            "training": training or {},
        }
    )
    settings, result = Settings(job=FineTuneJob(metadata=ObjectMeta(name="a"), spec=spec)), CheckResult()
    loaded = describe_loaded(published(model_type))
    check_modules(settings, loaded, result)
    add_estimate(settings, loaded, result)
    return result


def problem(model_type: str, method: dict[str, Any]) -> tuple[str, str]:
    """Return field and message of the one problem."""
    (found,) = check(model_type, method).problems
    return found.field, found.message


def lora(targets: Any = "auto", **fields: Any) -> dict[str, Any]:
    return {"lora": {"rank": 4, "targetModules": targets, **fields}}


@pytest.mark.parametrize("model_type", [name for name in MODELS if name not in ("mpt", "opt")])
def test_the_loaded_parameters_are_those_of_transformers(model_type: str) -> None:
    model = built(model_type)
    loaded = describe_loaded(published(model_type)).tensors
    parameters = {name: value.numel() for name, value in model.named_parameters() if name not in tied(model)}
    assert set(loaded) == set(parameters)
    assert sum(torch.Size(tensor.shape).numel() for tensor in loaded.values()) == sum(parameters.values())


def test_old_files_leave_out_the_first_part_of_the_names() -> None:
    tensors = {"wte.weight": Tensor("F32", (64, 32)), "h.0.attn.c_attn.weight": Tensor("F32", (32, 96))}
    metadata = ModelMetadata({"model_type": "gpt2"}, tensors, has_tokenizer=True, has_chat_template=False)
    assert list(describe_loaded(metadata).tensors) == ["transformer.wte.weight", "transformer.h.0.attn.c_attn.weight"]


def test_code_of_the_model_builds_what_the_files_name() -> None:
    metadata = published("mixtral")
    own = ModelMetadata(
        {**metadata.config, "auto_map": {"AutoModelForCausalLM": "own.Model"}}, metadata.tensors, True, False
    )
    assert describe_loaded(own, trusts_remote_code=True) is own
    assert describe_loaded(own).tensors == describe_loaded(metadata).tensors


@pytest.mark.parametrize("targets", ["auto", "all-linear"])
@pytest.mark.parametrize("model_type", [name for name in MODELS if name not in ("mpt", "opt")])
def test_what_the_preflight_counts_is_what_peft_trains(model_type: str, targets: str) -> None:
    result = check(model_type, lora(targets))
    assert not result.problems
    assert result.estimate
    adapted = add_adapter(built(model_type), Method.model_validate(lora(targets)), BaseInfo(Path(), None, 10))
    counted = (result.estimate.trainable_parameters, result.estimate.total_parameters)
    assert counted == adapted.get_nb_trainable_parameters()


@pytest.mark.parametrize("model_type", ["deepseek_v3", "gemma3", "gemma3n_text", "granitemoe", "olmoe", "qwen3_5"])
def test_the_memory_of_the_loaded_model_is_estimated(model_type: str) -> None:
    result = check(model_type, lora())
    assert result.estimate
    assert result.estimate.gpu_memory_bytes
    assert not [warning for warning in result.warnings if "not estimated" in warning]


@pytest.mark.parametrize(
    ("model_type", "method", "field", "message"),
    [
        ("gpt_neox", lora(modulesToSave=["embed_out"]), "modulesToSave", "no module named embed_out"),
        ("qwen3_5", lora(["q_proj"], modulesToSave=["merger"]), "modulesToSave", "no module named merger"),
        ("qwen3_5", lora(["linear_fc1"]), "targetModules", "no linear module named linear_fc1"),
        ("deepseek_v3", lora(["eh_proj", "q_b_proj"]), "targetModules", "no linear module named eh_proj"),
        (
            "mixtral",
            {"loha": {"targetModules": ["w1", "w3", "q_proj"]}},
            "targetModules",
            "no linear module named w1, w3",
        ),
        ("gpt_oss", lora(["router", "q_proj"]), "targetModules", "no linear module named router"),
        (
            "gemma3",
            lora(r"language_model\.model\.layers\.\d+\.self_attn\.q_proj"),
            "targetModules",
            "Full names look like model.language_model.layers.0.",
        ),
        ("llama", lora(["q_proj"], modulesToSave=["norm"]), "modulesToSave", "for example model.norm"),
        ("llama", lora(["q_proj"], modulesToSave=["mlp"]), "modulesToSave", "which has no weight of its own"),
        ("llama", lora(["q_proj"], modulesToSave=["1"]), "modulesToSave", "which has no weight of its own"),
        ("llama", lora(["lm_head"]), "targetModules", "write modulesToSave: [lm_head]"),
        ("mamba", lora(["in_proj", "out_proj"]), "targetModules", "does not adapt out_proj in a model of type 'mamba'"),
        (
            "qwen3_moe",
            lora(r".*layers\.0\..*q_proj"),
            "targetModules",
            "would also adapt model.layers.1.self_attn.q_proj",
        ),
        ("mixtral", lora(["w1", "w2", "q_proj"]), "targetModules", "w1 and w3 are one parameter"),
        (
            "mixtral",
            {"dora": {"targetModules": "all-linear"}},
            "targetModules",
            "PEFT's DoRA does not adapt the experts",
        ),
        ("qwen3_moe", lora("all-linear", dropout=0.1), "dropout", "without dropout only: set it to 0"),
        ("qwen3_moe", lora("all-linear", init="pissa"), "init", "pissa does not start an adapter of the experts"),
    ],
)
def test_names_and_options_that_the_loaded_model_does_not_allow(
    model_type: str, method: dict[str, Any], field: str, message: str
) -> None:
    (name,) = method
    where, what = problem(model_type, method)
    assert where == f"spec.method.{name}.{field}"
    assert message in what


@pytest.mark.parametrize(
    ("model_type", "method"),
    [
        ("gpt_neox", lora(["query_key_value"], modulesToSave=["lm_head"])),
        ("gemma3", lora(r"model\.language_model\.layers\.\d+\.self_attn\.(q|v)_proj")),
        ("qwen3_5", lora(r"model\.layers\.\d+\.mlp\.(up|down)_proj")),
        ("llama", lora(["q_proj"], modulesToSave=["model.norm"])),
        ("mixtral", lora(["gate", "q_proj"])),
        ("mixtral", lora(["w1", "w2", "w3"])),
        ("qwen3_moe", lora(r".*\.(q|v)_proj")),
        ("deepseek_v3", lora(["q_b_proj", "layers.1.self_attn.o_proj"])),
    ],
)
def test_names_of_the_loaded_model_pass_and_are_counted_as_peft_counts_them(
    model_type: str, method: dict[str, Any]
) -> None:
    result, parsed = check(model_type, method), Method.model_validate(method)
    assert not result.problems
    assert result.estimate
    adapted = add_adapter(built(model_type), parsed, BaseInfo(Path(), None, 10))
    check_all_matched(adapted, parsed)
    counted = (result.estimate.trainable_parameters, result.estimate.total_parameters)
    assert counted == adapted.get_nb_trainable_parameters()


PREFIX, PROMPT = {"prefixTuning": {"numVirtualTokens": 4}}, {"promptTuning": {"numVirtualTokens": 4}}


@pytest.mark.parametrize(
    ("model_type", "method", "message"),
    [
        ("lfm2", PREFIX, "layers of a model of type 'lfm2' keep none"),
        ("qwen3_next", PREFIX, "layers of a model of type 'qwen3_next' keep none"),
        ("qwen3_5", PREFIX, "layers of a model of type 'qwen3_5_text' keep none"),
        ("mamba", PREFIX, "layers of a model of type 'mamba' keep none"),
        ("deepseek_v3", PREFIX, "from a latent vector"),
        ("falcon", PREFIX, "does not fit the attention of this falcon"),
        ("mpt", PROMPT, "does not find the number of attention heads"),
        ("opt", PROMPT, "do not fit the embeddings of this model, which are 16 wide"),
        ("opt", {"pTuning": {}}, "do not fit the embeddings of this model, which are 16 wide"),
        ("gemma3", {"bottleneck": {}}, "does not know models of type 'gemma3', which read images too"),
    ],
)
def test_methods_that_do_not_fit_the_architecture_are_refused(
    model_type: str, method: dict[str, Any], message: str
) -> None:
    (found,) = check(model_type, method).problems
    assert found.reason == Reason.MODEL_UNSUPPORTED
    assert found.field == f"spec.method.{next(iter(method))}"
    assert message in found.message


@pytest.mark.parametrize("method", [PROMPT, {"pTuning": {}}])
def test_learned_tokens_fit_models_without_keys_and_values(method: dict[str, Any]) -> None:
    assert not check("lfm2", method).problems


@pytest.mark.parametrize(
    ("method", "options", "field"),
    [
        (lora(["q_proj", "w1"]), {"target_modules": ["q_proj", "w1"]}, "lora.targetModules"),
        (lora(["q_proj"], modulesToSave=["embed_out"]), {"modules_to_save": ["embed_out"]}, "lora.modulesToSave"),
        (
            {"peft": {"type": "LORA", "options": {"target_modules": ["q_proj"], "modules_to_save": ["lm_heads"]}}},
            {"modules_to_save": ["lm_heads"]},
            "peft.options.modules_to_save",
        ),
    ],
)
def test_a_name_that_matches_nothing_in_the_loaded_model_ends_the_training(
    method: dict[str, Any], options: dict[str, Any], field: str
) -> None:
    adapted = get_peft_model(built("llama"), LoraConfig(**{"target_modules": ["q_proj"]} | options))
    with pytest.raises(Failure, match="the loaded model has no module named") as caught:
        check_all_matched(adapted, Method.model_validate(method))
    assert caught.value.field == f"spec.method.{field}"
    assert caught.value.reason == Reason.TARGET_MODULES_NOT_FOUND
