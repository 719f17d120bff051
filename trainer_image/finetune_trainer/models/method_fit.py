"""Tell from a model's configuration and tensors which methods cannot train it, without torch.

Each rule is a failure of PEFT or of the trainer's own adapter that was seen with a model of that kind.
"""

import re
from collections.abc import Mapping
from typing import Any

from finetune_api.methods import Adalora, Block, Bottleneck, Miss
from finetune_api.targets import MethodMisfitError, MethodOptionError
from finetune_artifacts.safetensors import Tensor
from finetune_trainer.models.shapes import TEXT_KEYS, find_embeddings, find_width

_STATE_SPACE = re.compile(r"\.(A_log|conv1d\.weight|conv\.conv\.weight|time_decay)$")
"""Tensors of layers that keep a state instead of keys and values."""
_LATENT = re.compile(r"\.(kv_b_proj|kv_a_proj_with_mqa)\.weight$")
_OTHER_STATE = {"minimax", "openai-gpt"}
"""Types that keep no keys and values in some layers or in all, which their tensors do not show."""
_HEADS_BY_ANOTHER_NAME = {"mpt", "rwkv", "xglm"}
"""Types whose config.json counts the heads under a name that PEFT does not know."""
_EMBEDDINGS_ELSEWHERE = {"mllama_text_model"}


def describe_misfit(block: Block, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str | None:
    """Describe why a method that adapts no chosen modules cannot train this model; None if nothing is known.

    Args:
        block: The method's block.
        config: The configuration of the loaded model.
        tensors: The tensors of the loaded model.
    """
    model_type = config.get("model_type")
    if isinstance(block, Bottleneck):
        if any(isinstance(config.get(key), dict) for key in TEXT_KEYS):
            return (
                f"the bottleneck adapter does not know models of type {model_type!r}, which read images too: use lora"
            )
        return None
    if not block.is_prompt_learning:
        return None
    if model_type in _HEADS_BY_ANOTHER_NAME and "num_attention_heads" not in config:
        return f"PEFT does not find the number of attention heads of a model of type {model_type!r}: use lora"
    if block.prepends_keys_and_values:
        return _describe_prefix_misfit(model_type, tensors)
    if model_type in _EMBEDDINGS_ELSEWHERE:
        return f"PEFT does not find the embeddings of a model of type {model_type!r}: use lora"
    return _describe_width_misfit(config, tensors)


def check_sizes(block: Block, chosen: Mapping[str, tuple[int, int]], steps: int | None) -> None:
    """Check numbers of the block against the adapted layers and the steps.

    Args:
        block: The method's block.
        chosen: Output and input features of each adapted layer.
        steps: ``spec.training.maxSteps``.

    Raises:
        MethodMisfitError: PEFT refuses a number for a layer.
        MethodOptionError: The steps are too few for the schedule of AdaLoRA.
    """
    if isinstance(block, Miss):
        module, (_, inputs) = min(chosen.items(), key=lambda item: item[1][1])
        if block.rank > inputs:
            raise MethodMisfitError(
                "rank", f"{block.rank} is more than the {inputs} input features of {module}: set it to {inputs} or less"
            )
    if isinstance(block, Adalora) and steps is not None:
        try:
            block.plan_schedule(steps)
        except ValueError as error:
            raise MethodOptionError("tinit", str(error)) from error


def _describe_prefix_misfit(model_type: Any, tensors: Mapping[str, Tensor]) -> str | None:
    if model_type in _OTHER_STATE or any(_STATE_SPACE.search(name) for name in tensors):
        return (
            f"PEFT's prefix is keys and values for every layer, and layers of a model of type {model_type!r} keep "
            "none: use promptTuning or lora"
        )
    if any(_LATENT.search(name) for name in tensors):
        return (
            f"PEFT's prefix does not fit the attention of a model of type {model_type!r}, whose keys and values come "
            "from a latent vector: use promptTuning or lora"
        )
    return None


def _describe_width_misfit(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str | None:
    embeddings = find_embeddings(tensors)
    hidden = find_width(config)
    width = embeddings[1].shape[1] if embeddings else None
    if hidden is None or width in (None, hidden):
        return None
    return (
        f"PEFT's learned tokens are as wide as the hidden states, {hidden}, and do not fit the embeddings of this "
        f"model, which are {width} wide: use lora"
    )
