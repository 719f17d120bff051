"""What the headers of the weights tell of an architecture without a closed form, against PEFT on the meta device."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from finetune_api.estimate.architecture import architecture_of, known
from finetune_api.estimate.headers import architecture_from_headers
from finetune_api.estimate.memory import memory
from finetune_api.estimate.parameters import count
from finetune_api.estimate.shapes import UnknownArchitectureError
from finetune_api.finetunejob import FineTuneJob, FineTuneJobSpec, ObjectMeta, Training
from finetune_api.methods import Method
from finetune_artifacts.safetensors import Tensor
from finetune_trainer.methods.adapted_model import add_adapter
from finetune_trainer.methods.peft_config import BaseInfo
from finetune_trainer.models.base_files import ModelMetadata
from finetune_trainer.preflight.findings import CheckResult
from finetune_trainer.preflight.model import add_estimate
from finetune_trainer.runtime.settings import Settings
from tests.estimate.models import GROUPED
from tests.estimate.test_parameters import config_json

VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "cohere": GROUPED,
    "stablelm": GROUPED | {"use_qkv_bias": True},
    "starcoder2": GROUPED,
    "glm4": GROUPED | {"head_dim": 16, "pad_token_id": 0},
    "gemma3": {
        "text_config": GROUPED | {"head_dim": 32},
        "vision_config": VISION | {"image_size": 28, "patch_size": 14},
    },
}


def built(model_type: str, values: dict[str, Any]) -> torch.nn.Module:
    with torch.device("meta"):
        model: torch.nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values))
    return model


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


@pytest.mark.parametrize("block", [{"lora": {}}, {"lora": {"targetModules": ["q_proj", "v_proj"]}}, {"full": {}}])
@pytest.mark.parametrize("model_type", MODELS)
def test_the_counts_are_those_of_peft(model_type: str, block: dict[str, Any]) -> None:
    assert model_type not in known()
    model, method = built(model_type, MODELS[model_type]), Method.model_validate(block)
    architecture = architecture_from_headers(config_json(model_type, MODELS[model_type]), shapes_of(model))
    parameters = count(architecture, method)
    tuned = add_adapter(model, method, BaseInfo(Path(), None, total_steps=100))
    assert parameters.total == sum(parameter.numel() for parameter in tuned.parameters())
    assert parameters.trainable == sum(p.numel() for p in tuned.parameters() if p.requires_grad)


def test_an_architecture_with_a_closed_form_needs_as_much_memory_either_way() -> None:
    config = config_json("llama", GROUPED)
    from_headers = architecture_from_headers(config, shapes_of(built("llama", GROUPED)))
    method = Method.model_validate({"qlora": {}})
    assert memory(from_headers, method, Training()) == memory(architecture_of(config), method, Training())


def test_experts_in_files_are_not_guessed_at() -> None:
    shapes = {"model.layers.0.mlp.experts.0.up_proj.weight": (8, 8)}
    with pytest.raises(UnknownArchitectureError, match="model_type 'new_moe', and its files do not show"):
        architecture_from_headers({"model_type": "new_moe"}, shapes)


def test_the_preflight_estimates_an_architecture_without_a_closed_form() -> None:
    tensors = {name: Tensor("BF16", shape) for name, shape in shapes_of(built("cohere", GROUPED)).items()}
    metadata = ModelMetadata(config_json("cohere", GROUPED), tensors, has_tokenizer=True, has_chat_template=False)
    spec = FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "hf://acme/model"},
            "dataset": {"uri": "hf://acme/rows"},
            "output": {"s3": {"bucket": "adapters"}},
        }
    )
    settings, result = Settings(job=FineTuneJob(metadata=ObjectMeta(name="a"), spec=spec)), CheckResult()
    add_estimate(settings, metadata, result)
    assert result.estimate is not None
    assert result.estimate.gpu_memory_bytes is not None
    assert result.estimate.gpu_memory_bytes > 1.5 * 2**30
    assert [warning for warning in result.warnings if "model_type 'cohere' has no closed form" in warning]
