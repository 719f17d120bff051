"""Every count against PEFT itself: each method on each architecture, built by transformers on the meta device."""

import copy
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from finetune_api import peft_tables
from finetune_api.estimate.architecture import architecture_of
from finetune_api.estimate.modules import NotCountedError
from finetune_api.estimate.parameters import Counts, count
from finetune_api.estimate.shapes import UnknownArchitectureError
from finetune_api.methods import METHODS, Method
from finetune_api.targets import TargetError
from finetune_trainer.methods.adapted_model import add_adapter
from finetune_trainer.methods.peft_config import BaseInfo
from finetune_trainer.runtime.failures import Failure
from tests.estimate.models import MIXTURES, MODELS
from tools.testing.llama_8b import LLAMA_8B

EXPRESSION = r".*\.(v_proj|dense|c_fc)"
CASES: dict[str, dict[str, Any]] = {
    "lora": {"lora": {}},
    "lora all": {"lora": {"targetModules": "all-linear"}},
    "lora defaults": {"lora": {"targetModules": []}},
    "lora expression": {"lora": {"targetModules": EXPRESSION, "rank": 3}},
    "lora all biases": {"lora": {"bias": "all"}},
    "lora own biases": {"lora": {"bias": "lora_only", "targetModules": EXPRESSION}},
    "lora patterns": {
        "lora": {
            "targetModules": "all-linear",
            "rankPattern": {r".*\.1\..*": 6, ".*dense|[ov]_proj|c_attn|out_proj": 5},
        }
    },
    "lora saved head": {"lora": {"modulesToSave": ["lm_head"]}},
    "qlora": {"qlora": {"rank": 7}},
    "dora": {"dora": {"rank": 8}},
    "adalora": {"adalora": {}},
    "ia3": {"ia3": {}},
    "ia3 all": {"ia3": {"targetModules": "all-linear"}},
    "vera": {"vera": {"rank": 32}},
    "loha": {"loha": {}},
    "lokr": {"lokr": {}},
    "lokr low rank": {"lokr": {"rank": 2, "decomposeBoth": True, "decomposeFactor": -1}},
    "lokr factor": {"lokr": {"rank": 2, "decomposeFactor": 3}},
    "oft": {"oft": {}},
    "oft odd block": {"oft": {"oftBlockSize": 13}},
    "oft shared": {"oft": {"oftBlockSize": 16, "blockShare": True}},
    "miss": {"miss": {"rank": 16}},
    "prefix": {"prefixTuning": {}},
    "prefix projection": {"prefixTuning": {"prefixProjection": True, "encoderHiddenSize": 40}},
    "prefix projection default": {"prefixTuning": {"prefixProjection": True}},
    "prompt": {"promptTuning": {"numVirtualTokens": 9}},
    "prompt random": {"promptTuning": {"promptTuningInit": "random"}},
    "p-tuning": {"pTuning": {}},
    "p-tuning lstm": {
        "pTuning": {"encoderReparameterizationType": "LSTM", "encoderHiddenSize": 24, "encoderNumLayers": 3}
    },
    "houlsby": {"bottleneck": {"reductionFactor": 6}},
    "pfeiffer": {"bottleneck": {"placement": "pfeiffer"}},
    "full": {"full": {}},
}


def config_json(model_type: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the content of the model's config.json."""
    content: dict[str, Any] = json.loads(AutoConfig.for_model(model_type, **values).to_json_string())
    return content


@cache
def built(name: str, device: str = "meta") -> torch.nn.Module:
    """Build the model with transformers; on the meta device without memory."""
    model_type, values = MODELS[name]
    with torch.device(device):
        model: torch.nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values))
    return model


@pytest.mark.parametrize("model", MODELS)
def test_the_modules_are_those_of_transformers(model: str) -> None:
    expected = {name: tuple(value.shape) for name, value in built(model).named_parameters()}
    shapes: dict[str, tuple[int, ...]] = {}
    for module in architecture_of(config_json(*MODELS[model])).modules:
        if module.kind == "parameter":
            assert math.prod(expected.pop(module.name)) == module.parameters
        elif not module.tied:
            shape = (module.inputs, module.outputs)
            shape = shape[::-1] if module.kind in ("linear", "router") else shape
            shapes[f"{module.name}.weight"] = shape[:1] if module.kind.endswith("Norm") else shape
        if module.bias:
            shapes[f"{module.name}.bias"] = (module.outputs,)
    assert shapes == expected


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("case", CASES)
def test_the_counts_are_those_of_what_the_trainer_builds(model: str, case: str) -> None:
    architecture, method = architecture_of(config_json(*MODELS[model])), Method.model_validate(CASES[case])
    # on the meta device PEFT 0.21 forgets that AdaLoRA's ranknum is frozen
    base = copy.deepcopy(built(model, "cpu" if case == "adalora" else "meta"))
    try:
        tuned = add_adapter(base, method, BaseInfo(Path(), None, total_steps=100))
    except Failure:
        with pytest.raises((TargetError, NotCountedError)):
            count(architecture, method)
        return
    if case == "lora patterns" and peft_tables.converted_experts(architecture.model_type):
        with pytest.raises(NotCountedError, match="experts with a rankPattern"):
            count(architecture, method)
        return
    parameters = count(architecture, method)
    assert parameters == Counts(
        sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad),
        sum(parameter.numel() for parameter in tuned.parameters()),
    )
    if isinstance(tuned, PeftModel):
        assert (parameters.trainable, parameters.total) == tuned.get_nb_trainable_parameters()


def test_llama_8b_is_counted_as_peft_counts_it() -> None:
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA_8B))
    method = Method.model_validate({"lora": {"targetModules": ["q_proj", "k_proj", "v_proj", "o_proj"]}})
    tuned = add_adapter(base, method, BaseInfo(Path(), None, total_steps=100))
    parameters = count(architecture_of(LLAMA_8B), method)
    assert (
        (parameters.trainable, parameters.total) == tuned.get_nb_trainable_parameters() == (13_631_488, 8_043_892_736)
    )


@pytest.mark.parametrize(
    ("block", "adapted"),
    [
        ({"targetModules": ["q_proj", "w1", "w2", "w3"]}, None),
        ({"targetModules": ["w1", "w2", "w3"]}, None),
        ({"targetModules": ["gate", "v_proj"]}, None),
        ({"targetModules": ["w1", "w2"]}, TargetError),
        ({"targetModules": "all-linear", "dropout": 0.1}, TargetError),
        ({"targetModules": r".*experts\.w1"}, TargetError),
    ],
)
def test_experts_are_named_as_peft_names_them(block: dict[str, Any], adapted: type[Exception] | None) -> None:
    method = Method.model_validate({"lora": block})
    architecture = architecture_of(config_json(*MODELS["mixtral"]))
    if adapted is not None:
        with pytest.raises(adapted):
            count(architecture, method)
        with pytest.raises(Failure):
            add_adapter(copy.deepcopy(built("mixtral")), method, BaseInfo(Path(), None, total_steps=100))
        return
    tuned = add_adapter(copy.deepcopy(built("mixtral")), method, BaseInfo(Path(), None, total_steps=100))
    assert (
        count(architecture, method).trainable,
        count(architecture, method).total,
    ) == tuned.get_nb_trainable_parameters()


def test_the_size_of_known_mixtures() -> None:
    """From their model cards: 46.7 billion, 30.5, 20.9, 671, and 107.8 without the vision tower."""
    sizes = {name: architecture_of(config).parameters / 1e9 for name, config in MIXTURES.items()}
    assert sizes == pytest.approx(
        {
            "Mixtral-8x7B": 46.70,
            "Qwen3-30B-A3B": 30.53,
            "gpt-oss-20b": 20.91,
            "DeepSeek-V3": 671.03,
            "Llama-4-Scout": 107.8,
        },
        rel=1e-3,
    )


def test_every_method_is_counted() -> None:
    assert {next(iter(block)) for block in CASES.values()} == {*METHODS} - {"peft"}


def test_any_other_method_of_peft_is_not_counted() -> None:
    method = Method.model_validate({"peft": {"type": "BOFT", "options": {}}})
    with pytest.raises(NotCountedError, match="no closed form for PEFT's BOFT"):
        count(architecture_of(LLAMA_8B), method)


def test_the_figures_of_llama_8b() -> None:
    """Those of the project's reference, each counted once with PEFT."""
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    expected = {
        13_631_488: {"lora": {"rank": 16, "targetModules": attention}},
        41_943_040: {"lora": {"rank": 16}},
        6_815_744: {"lora": {"rank": 16, "targetModules": ["q_proj", "v_proj"]}},
        31_459_968: {"adalora": {"initRank": 12, "targetModules": "all-linear"}},
        524_288: {"ia3": {}},
        1_966_080: {"prefixTuning": {"numVirtualTokens": 30}},
        81_920: {"promptTuning": {"numVirtualTokens": 20}},
        1_151_232: {"pTuning": {"numVirtualTokens": 20, "encoderHiddenSize": 128}},
        19_300_352: {"oft": {}},
        8_030_261_248: {"full": {}},
    }
    trainable = {
        count(architecture_of(LLAMA_8B), Method.model_validate(block)).trainable for block in expected.values()
    }
    assert trainable == set(expected)


def test_an_architecture_that_is_not_known_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        UnknownArchitectureError, match="model_type 'mamba'; it knows: bloom, deepseek_v3, falcon, gemma"
    ):
        architecture_of({"model_type": "mamba"})
    with pytest.raises(UnknownArchitectureError, match=r"config\.json of model_type 'llama' has no intermediate_size"):
        architecture_of({"model_type": "llama", "hidden_size": 8})
