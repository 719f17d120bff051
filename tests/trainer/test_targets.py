"""The modules chosen by name are those that PEFT adapts: for each way to name them, in each architecture."""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from finetune_api import peft_tables, roles, targets
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.methods import Adalora, Ia3, Lora, Method, Targeted
from finetune_artifacts.safetensors import Tensor
from finetune_engines import list_refusals
from finetune_trainer.methods.adapted_model import add_adapter
from finetune_trainer.methods.peft_config import BaseInfo
from finetune_trainer.models import modules
from finetune_trainer.preflight.serving import list_serving_warnings
from finetune_trainer.runtime.failures import Failure
from tools.generate import find_stale
from tools.peft_tables import table

SIZES: dict[str, dict[str, Any]] = {
    "LlamaConfig": {"num_key_value_heads": 1},
    "MistralConfig": {"num_key_value_heads": 1},
    "Qwen2Config": {"num_key_value_heads": 1},
    "GPT2Config": {},
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "FalconConfig": {},
    "BloomConfig": {"n_layer": 2, "n_head": 2},
    "Phi3Config": {"pad_token_id": 0},
    "Olmo2Config": {},
    "GraniteConfig": {},
    "CohereConfig": {},
    "StableLmConfig": {},
    "Starcoder2Config": {"num_key_value_heads": 1},
    "Qwen3MoeConfig": {"num_experts": 2, "moe_intermediate_size": 16, "num_key_value_heads": 1},
    "MixtralConfig": {"num_local_experts": 2, "num_key_value_heads": 1},
    "DeepseekV3Config": {
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 2,
    },
    "GPTNeoXJapaneseConfig": {},
    "MptConfig": {"d_model": 32, "n_heads": 2, "n_layers": 2},
}
TARGET_MODULES: list[str | list[str]] = [
    "all-linear",
    [],
    r".*\.0\..*(q_proj|c_attn|query_key_value)",
    ["down_proj", "c_proj", "dense_4h_to_h"],
]


@cache
def config(name: str) -> Any:
    """Return a tiny configuration."""
    common = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 64,
    }
    return getattr(transformers, name)(**common | SIZES[name])


def fresh(name: str) -> tuple[Any, dict[str, Tensor]]:
    """Return a model without memory, and the names and shapes of its tensors as a file has them."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config(name))
    return model, {key: Tensor("F32", tuple(value.shape)) for key, value in model.named_parameters()}


def adapted(model: Any) -> set[str]:
    """Return the modules that PEFT put an adapter on."""
    names = {
        re.split(r"\.(?:lora_|ia3_)", key)[0] for key, _ in model.named_parameters() if re.search("lora_|ia3_l", key)
    }
    return {name.removeprefix("base_model.model.") for name in names}


def existing(target_modules: str | list[str], linear: list[str]) -> str | list[str]:
    """Of a list, the names that the architecture has."""
    return (
        [name for name in target_modules if roles.suffixes(linear).count(name)]
        if isinstance(target_modules, list)
        else target_modules
    )


@pytest.mark.parametrize("target_modules", TARGET_MODULES, ids=str)
@pytest.mark.parametrize(
    "name", ["LlamaConfig", "MistralConfig", "Qwen2Config", "GPT2Config", "GPTNeoConfig", "FalconConfig", "BloomConfig"]
)
def test_the_chosen_modules_are_those_that_peft_adapts(name: str, target_modules: str | list[str]) -> None:
    model, tensors = fresh(name)
    linear = modules.list_linear_modules(tensors)
    block = Lora(
        rank=4,
        target_modules=existing(target_modules, list(linear)),
        rank_pattern={r".*\.1\..*": 6} if target_modules == "all-linear" else {},
    )
    chosen = targets.select_modules(list(linear), block, "lora", model.config.model_type)
    tuned = add_adapter(model, Method(lora=block), BaseInfo(Path("base"), None, 10))
    assert set(chosen) == adapted(tuned)
    trainable, _ = tuned.get_nb_trainable_parameters()
    assert modules.count_lora_parameters(linear, chosen, block) == trainable


@pytest.mark.parametrize(
    "name", ["LlamaConfig", "Qwen2Config", "GPT2Config", "GPTNeoConfig", "FalconConfig", "BloomConfig"]
)
def test_ia3_scales_what_peft_scales(name: str) -> None:
    model, tensors = fresh(name)
    linear = list(modules.list_linear_modules(tensors))
    chosen = targets.select_modules(linear, Ia3(), "ia3", model.config.model_type)
    scaled = set(targets.select_feedforward(chosen, Ia3(), model.config.model_type))
    tuned = add_adapter(model, Method(ia3=Ia3()), BaseInfo(Path("base"), None, 10))
    assert set(chosen) == adapted(tuned)
    feedforward = {
        key for key, module in tuned.base_model.model.named_modules() if getattr(module, "is_feedforward", False)
    }
    assert scaled == feedforward != set()


ROLES = {
    "Phi3Config": ["qkv_proj", "down_proj"],
    "Olmo2Config": ["k_proj", "v_proj", "down_proj"],
    "GraniteConfig": ["k_proj", "v_proj", "down_proj"],
    "CohereConfig": ["k_proj", "v_proj", "down_proj"],
    "StableLmConfig": ["k_proj", "v_proj", "down_proj"],
    "Starcoder2Config": ["k_proj", "v_proj", "mlp.c_proj"],
    "Qwen3MoeConfig": ["k_proj", "v_proj"],
    "GPTNeoXJapaneseConfig": ["query_key_value", "dense_4h_to_h"],
    "MptConfig": ["Wqkv", "ffn.down_proj"],
}
"""What IA³ scales in architectures that PEFT has no defaults for."""


@pytest.mark.parametrize("name", ROLES)
def test_an_architecture_that_peft_does_not_know_has_defaults_by_the_roles_of_its_layers(name: str) -> None:
    model, tensors = fresh(name)
    linear = list(modules.list_linear_modules(tensors))
    model_type = model.config.model_type
    assert peft_tables.default_targets("IA3", model_type) is None
    chosen = targets.select_modules(linear, Ia3(), "ia3", model_type)
    expected = {module for module in linear if any(module.endswith(f".{end}") for end in ROLES[name])}
    assert set(chosen) == expected != set()
    scaled = set(targets.select_feedforward(chosen, Ia3(), model_type))
    tuned = add_adapter(model, Method(ia3=Ia3()), BaseInfo(Path("base"), None, 10))
    assert adapted(tuned) == expected
    feedforward_modules = {
        key for key, module in tuned.base_model.model.named_modules() if getattr(module, "is_feedforward", False)
    }
    assert scaled == feedforward_modules


@pytest.mark.parametrize(
    ("name", "suffixes"),
    [("MistralConfig", {"q_proj", "v_proj"}), ("Phi3Config", {"qkv_proj"}), ("MptConfig", {"Wqkv"})],
)
def test_low_rank_methods_adapt_queries_and_values_by_default(name: str, suffixes: set[str]) -> None:
    model, tensors = fresh(name)
    block = Adalora(target_modules=[])
    linear = list(modules.list_linear_modules(tensors))
    chosen = targets.select_modules(linear, block, "adalora", model.config.model_type)
    assert set(roles.suffixes(chosen)) == suffixes
    assert adapted(add_adapter(model, Method(adalora=block), BaseInfo(Path("base"), None, 10))) == set(chosen)


@pytest.mark.parametrize("name", ["MixtralConfig", "Qwen3MoeConfig", "DeepseekV3Config"])
def test_a_mixture_of_experts_is_adapted_in_its_attention_which_engines_serve(name: str) -> None:
    model, tensors = fresh(name)
    linear = list(modules.list_linear_modules(tensors))
    model_type = model.config.model_type
    chosen = targets.select_modules(linear, Lora(), "lora", model_type, has_experts=roles.has_experts(tensors))
    assert all(".self_attn." in module for module in chosen)
    assert len(chosen) == sum(".self_attn." in module for module in linear)
    tuned = add_adapter(model, Method(lora=Lora()), BaseInfo(Path("base"), None, 10))
    assert adapted(tuned) == set(chosen)
    assert list_refusals(published(tuned)) == {}
    assert warnings({"lora": {}}, model_type, tensors) == []


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("MixtralConfig", "all-linear"),
        ("MixtralConfig", ["q_proj", "w1", "w2", "w3"]),
        ("Qwen3MoeConfig", r".*\.(gate_proj|up_proj)"),
        ("DeepseekV3Config", ["gate_proj", "up_proj", "down_proj"]),
    ],
)
def test_adapted_experts_which_no_engine_serves_are_warned_of(name: str, wanted: str | list[str]) -> None:
    model, _ = fresh(name)
    names = stored_names(model)
    tuned = add_adapter(model, Method(lora=Lora(target_modules=wanted)), BaseInfo(Path("base"), None, 10))
    refusals = list_refusals(published(tuned))
    assert refusals.keys() == {"vLLM", "SGLang"}
    assert all("target_parameters" in problem for problem in refusals.values())
    (warning,) = warnings({"lora": {"targetModules": wanted}}, model.config.model_type, names)
    assert warning.startswith("spec.method.lora.targetModules: ")
    assert "vLLM and SGLang will not serve the adapter: set it to auto" in warning
    assert warnings({"lora": {"targetModules": wanted}}, model.config.model_type, names, mergedModel=True) == []


def published(tuned: Any) -> dict[str, Any]:
    """Return what adapter_config.json says."""
    config: dict[str, Any] = tuned.peft_config["default"].to_dict()
    return config | {"peft_type": "LORA"}


def stored_names(model: Any) -> list[str]:
    """Return the names of the weights as published files have them, with a matrix for each expert."""
    return list(transformers.core_model_loading.revert_weight_conversion(model, dict(model.state_dict())))


def warnings(method: dict[str, Any], model_type: str, tensors: Iterable[str], **output: Any) -> list[str]:
    """Return what the preflight says of engines that will not serve the adapter."""
    spec = FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "hf://org/model"},
            "dataset": {"uri": "hf://org/data"},
            "method": method,
            "output": {"s3": {"bucket": "models"}, **output},
        }
    )
    return list_serving_warnings(spec, model_type, tensors)


def test_layers_whose_names_tell_no_role_have_to_be_named() -> None:
    with pytest.raises(targets.TargetError, match=r"which ones compute keys and values.*it has: alpha, beta"):
        targets.select_modules(["layers.0.alpha", "layers.0.beta"], Ia3(), "ia3", "novel")


@pytest.mark.parametrize(
    ("block", "field", "message"),
    [
        (
            Lora(target_modules=["q_attn"]),
            "targetModules",
            "no linear module named q_attn; it has: down_proj, gate_proj, up_proj, k_proj, o_proj, q_proj, v_proj",
        ),
        (
            Lora(target_modules=r".*\.q_attn"),
            "targetModules",
            "matches the full name of no linear module. Full names look like model.layers.0.",
        ),
        (Lora(rank_pattern={"q_attn": 8}), "rankPattern", "'q_attn' matches none of the adapted modules"),
        (Lora(alpha_pattern={"(q": 8}), "alphaPattern", "is no regular expression"),
        (Lora(target_modules=["q_proj"], modules_to_save=["self_attn"]), "modulesToSave", "so that none is adapted"),
        (
            Ia3(target_modules=["k_proj"], feedforward_modules=["up_proj"]),
            "feedforwardModules",
            "up_proj is none of the adapted modules, which are: k_proj",
        ),
    ],
)
def test_names_that_the_model_does_not_have(block: Targeted, field: str, message: str) -> None:
    model, tensors = fresh("MistralConfig")
    linear = list(modules.list_linear_modules(tensors))
    with pytest.raises(targets.TargetError) as caught:
        chosen = targets.select_modules(linear, block, type(block).__name__.lower(), model.config.model_type)
        assert isinstance(block, Ia3)
        targets.select_feedforward(chosen, block, model.config.model_type)
    assert caught.value.field == field
    assert message in str(caught.value)


def test_modules_that_are_saved_whole_must_exist() -> None:
    tensors = fresh("LlamaConfig")[1]
    names, weighted = modules.list_modules(tensors), modules.list_weighted(tensors)
    targets.check_saved(names, weighted, ["lm_head", "model.norm", "embed_tokens"])
    with pytest.raises(targets.TargetError, match="no module named head with weights of its own; it has: "):
        targets.check_saved(names, weighted, ["lm_head", "head"])


def test_an_expression_must_not_match_what_holds_the_layers() -> None:
    tensors = fresh("LlamaConfig")[1]
    linear, names = list(modules.list_linear_modules(tensors)), modules.list_modules(tensors)
    targets.check_expression(names, linear, r".*mlp\..*_proj")
    with pytest.raises(targets.TargetError, match=r"also matches model\.layers\.0\.mlp, which is no linear module"):
        targets.check_expression(names, linear, r".*\.mlp.*")


def test_files_that_leave_out_the_first_part_of_the_names() -> None:
    linear = ["h.0.attn.c_attn", "h.1.attn.c_attn"]
    block = Lora(target_modules=r"transformer\.h\.0\..*c_attn")
    assert targets.select_modules(linear, block, "lora", "gpt2") == ["h.0.attn.c_attn"]


def test_what_peft_does_not_support_is_reported_in_its_words() -> None:
    model, _ = fresh("GPT2Config")
    with pytest.raises(Failure, match="not supported") as caught:
        add_adapter(
            model, Method.model_validate({"loha": {"targetModules": ["c_attn"]}}), BaseInfo(Path("base"), None, 10)
        )
    assert caught.value.field == "spec.method.loha"


def test_a_schedule_without_room_for_adalora_is_refused() -> None:
    model, _ = fresh("LlamaConfig")
    with pytest.raises(Failure, match="tinit 6 and tfinal 2 leave no step of 8"):
        add_adapter(model, Method(adalora=Adalora(tinit=6)), BaseInfo(Path("base"), None, 8))


def test_the_table_of_what_peft_has_is_that_of_the_installed_one() -> None:
    assert find_stale({"operator/finetune_api/peft.json": table()}) == [], "run `make generate` and commit the result"
    assert peft_tables.default_targets("LORA", "llama") == ["q_proj", "v_proj"]


def test_a_router_that_returns_two_tensors_gets_no_adapter() -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    llama4_sizes: dict[str, Any] = {"head_dim": 16, "num_key_value_heads": 1, "num_local_experts": 2, "vocab_size": 64}
    base = transformers.Llama4ForCausalLM(
        transformers.Llama4TextConfig(**sizes, **llama4_sizes, intermediate_size_mlp=64)
    )
    method = Method.model_validate({"lora": {"targetModules": "all-linear"}})
    model = add_adapter(base, method, BaseInfo(Path(), None, 10))
    adapted = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert not any(name.endswith("router") for name in adapted)
    assert any(name.endswith("shared_expert.down_proj") for name in adapted)
    assert torch.isfinite(model(input_ids=torch.tensor([[1, 2, 3]])).logits).all()
