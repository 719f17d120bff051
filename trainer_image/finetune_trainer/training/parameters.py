"""Count the parameters of a model: all of them, and the trained ones by the module that carries them."""

from typing import Any

from peft import PeftModel

from finetune_trainer.session.run import ParameterCounts

ADAPTER_PREFIXES = ("lora_", "ia3_", "hada_", "lokr_", "oft_", "vera_", "miss_", "boft_")
"""Beginnings of the names of the submodules that PEFT adds to a module."""
NOT_MODULES = ("default", "weight", "bias", "modules_to_save", "original_module", "base_layer")


def count_parameters(model: Any) -> ParameterCounts:
    """Count all parameters, the trained ones, and the trained ones of each kind of module."""
    modules: dict[str, int] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            modules[find_module(name)] = modules.get(find_module(name), 0) + weight.numel()
    # both count 4-bit weights by number, not by the bytes that hold them
    total = model.get_nb_trainable_parameters()[1] if isinstance(model, PeftModel) else model.num_parameters()
    return ParameterCounts(sum(modules.values()), total, sorted(modules.items(), key=lambda item: (-item[1], item[0])))


def find_module(name: str) -> str:
    """Return ``q_proj`` of ``base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight``."""
    parts = [part for part in name.split(".") if part not in NOT_MODULES and not part.isdigit()]
    if "prompt_encoder" in parts:
        return "prompt_encoder"
    adapter_parts = [index for index, part in enumerate(parts) if part.startswith(ADAPTER_PREFIXES)]
    at = adapter_parts[0] if adapter_parts else len(parts)
    return parts[at - 1] if at else name
