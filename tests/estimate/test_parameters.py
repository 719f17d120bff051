"""Every count against PEFT itself: each method on each architecture, built by transformers on the meta device."""

import copy
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import peft
import pytest
import torch
from peft import PeftConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from finetune_api.estimate.architecture import architecture_of
from finetune_api.estimate.parameters import NotCountedError, count
from finetune_api.estimate.targets import TargetsError
from finetune_api.methods import Method
from tests.estimate.models import MODELS

LANGUAGE = {"task_type": "CAUSAL_LM"}
ALL = {"target_modules": "all-linear"} | LANGUAGE
EXPRESSION = r".*\.(v_proj|dense|c_fc)"

CASES: dict[str, tuple[dict[str, Any], Callable[[], PeftConfig]]] = {
    "lora": ({"lora": {}}, lambda: peft.LoraConfig(r=16, **ALL)),
    "lora defaults": ({"lora": {"targetModules": []}}, lambda: peft.LoraConfig(r=16, **LANGUAGE)),
    "lora expression": (
        {"lora": {"targetModules": EXPRESSION, "rank": 3}},
        lambda: peft.LoraConfig(r=3, target_modules=EXPRESSION, **LANGUAGE),
    ),
    "lora all biases": ({"lora": {"bias": "all"}}, lambda: peft.LoraConfig(r=16, bias="all", **ALL)),
    "lora own biases": (
        {"lora": {"bias": "lora_only", "targetModules": EXPRESSION}},
        lambda: peft.LoraConfig(r=16, bias="lora_only", target_modules=EXPRESSION, **LANGUAGE),
    ),
    "lora patterns": (
        {"lora": {"rankPattern": {"v_proj": 4, "dense": 5, r"layers\.1\..*": 6}}},
        lambda: peft.LoraConfig(r=16, rank_pattern={"v_proj": 4, "dense": 5, r"layers\.1\..*": 6}, **ALL),
    ),
    "lora saved head": (
        {"lora": {"modulesToSave": ["lm_head"]}},
        lambda: peft.LoraConfig(r=16, modules_to_save=["lm_head"], **ALL),
    ),
    "qlora": ({"qlora": {"rank": 7}}, lambda: peft.LoraConfig(r=7, **ALL)),
    "dora": ({"dora": {"rank": 8}}, lambda: peft.LoraConfig(r=8, use_dora=True, **ALL)),
    "adalora": (
        {"adalora": {"initRank": 12}},
        lambda: peft.AdaLoraConfig(init_r=12, target_r=8, total_step=100, **ALL),
    ),
    "ia3": ({"ia3": {}}, lambda: peft.IA3Config(**LANGUAGE)),
    "vera": ({"vera": {"rank": 32}}, lambda: peft.VeraConfig(r=32, **ALL)),
    "loha": ({"loha": {}}, lambda: peft.LoHaConfig(r=8, **ALL)),
    "lokr": ({"lokr": {}}, lambda: peft.LoKrConfig(r=8, **ALL)),
    "lokr low rank": (
        {"lokr": {"rank": 2, "decomposeBoth": True}},
        lambda: peft.LoKrConfig(r=2, decompose_both=True, **ALL),
    ),
    "lokr factor": (
        {"lokr": {"rank": 2, "decomposeFactor": 3}},
        lambda: peft.LoKrConfig(r=2, decompose_factor=3, **ALL),
    ),
    "oft": ({"oft": {}}, lambda: peft.OFTConfig(oft_block_size=32, **ALL)),
    "oft odd block": ({"oft": {"oftBlockSize": 13}}, lambda: peft.OFTConfig(oft_block_size=13, **ALL)),
    "oft shared": (
        {"oft": {"oftBlockSize": 16, "blockShare": True}},
        lambda: peft.OFTConfig(oft_block_size=16, block_share=True, **ALL),
    ),
    "miss": ({"miss": {"rank": 16}}, lambda: peft.MissConfig(r=16, **ALL)),
    "prefix": ({"prefixTuning": {}}, lambda: peft.PrefixTuningConfig(num_virtual_tokens=20, **LANGUAGE)),
    "prefix projection": (
        {"prefixTuning": {"prefixProjection": True, "encoderHiddenSize": 40}},
        lambda: peft.PrefixTuningConfig(
            num_virtual_tokens=20, prefix_projection=True, encoder_hidden_size=40, **LANGUAGE
        ),
    ),
    "prefix projection default": (
        {"prefixTuning": {"prefixProjection": True}},
        lambda: peft.PrefixTuningConfig(num_virtual_tokens=20, prefix_projection=True, **LANGUAGE),
    ),
    "prompt": (
        {"promptTuning": {"numVirtualTokens": 9}},
        lambda: peft.PromptTuningConfig(num_virtual_tokens=9, **LANGUAGE),
    ),
    "p-tuning": ({"pTuning": {}}, lambda: peft.PromptEncoderConfig(num_virtual_tokens=20, **LANGUAGE)),
    "p-tuning lstm": (
        {"pTuning": {"encoderReparameterizationType": "LSTM", "encoderHiddenSize": 24, "encoderNumLayers": 3}},
        lambda: peft.PromptEncoderConfig(
            num_virtual_tokens=20,
            encoder_reparameterization_type="LSTM",
            encoder_hidden_size=24,
            encoder_num_layers=3,
            **LANGUAGE,
        ),
    ),
}


def config_json(model_type: str, values: dict[str, Any]) -> dict[str, Any]:
    """What stands in the model's config.json."""
    content: dict[str, Any] = json.loads(AutoConfig.for_model(model_type, **values).to_json_string())
    return content


@cache
def built(name: str, device: str = "meta") -> torch.nn.Module:
    """The model as transformers builds it; on the meta device without memory."""
    model_type, values = MODELS[name]
    with torch.device(device):
        model: torch.nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values))
    return model


@pytest.mark.parametrize("model", MODELS)
def test_the_modules_are_those_of_transformers(model: str) -> None:
    expected = {name: tuple(value.shape) for name, value in built(model).named_parameters()}
    found: dict[str, tuple[int, ...]] = {}
    for module in architecture_of(config_json(*MODELS[model])).modules:
        if not module.tied:
            shape = {"linear": (module.outputs, module.inputs)}.get(module.kind, (module.inputs, module.outputs))
            found[f"{module.name}.weight"] = shape[:1] if module.kind.endswith("Norm") else shape
        if module.bias:
            found[f"{module.name}.bias"] = (module.outputs,)
    assert found == expected


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("case", CASES)
def test_the_counts_are_those_of_peft(model: str, case: str) -> None:
    block, config = CASES[case]
    architecture = architecture_of(config_json(*MODELS[model]))
    # on the meta device PEFT 0.21 forgets that AdaLoRA's ranknum is frozen
    device = "cpu" if case == "adalora" else "meta"
    try:
        tuned = get_peft_model(copy.deepcopy(built(model, device)), config())
    except (ValueError, TypeError):
        with pytest.raises((TargetsError, NotCountedError)):
            count(architecture, Method.model_validate(block))
        return
    counted = count(architecture, Method.model_validate(block))
    assert (counted.trainable, counted.total) == tuned.get_nb_trainable_parameters()
