"""Refuse a model whose weights are quantised already."""

from collections.abc import Mapping
from typing import Any

from finetune_artifacts.safetensors import Tensor
from finetune_trainer.models.modules import find_quantised

ORIGINAL = "use the original model, which method qlora quantises itself"


def describe_quantised(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str | None:
    """Describe how the model's weights are quantised, or why that is not clear; None if they are not.

    Args:
        config: The config.json.
        tensors: The tensors of the weights.
    """
    settings, weight = config.get("quantization_config"), find_quantised(tensors)
    if settings is not None and not isinstance(settings, dict):
        return (
            f"quantization_config in config.json is {settings!r}, not an object: remove it if the weights are not "
            f"quantised, else {ORIGINAL}"
        )
    if weight and not settings:
        return (
            f"the model's weights are quantised already ({weight} is {tensors[weight].dtype}), though config.json does "
            f"not say how: {ORIGINAL}"
        )
    if not settings:
        return None
    kind = settings.get("quant_method") or "no quant_method"
    if weight or kind not in ("bitsandbytes", "no quant_method"):
        return f"the model's weights are quantised already ({kind}): {ORIGINAL}"
    return (
        f"config.json has a quantization_config ({kind}), but the weights are not quantised: remove "
        "quantization_config from config.json; method qlora quantises the weights itself"
    )
