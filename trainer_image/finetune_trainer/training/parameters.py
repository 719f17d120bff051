"""Count the parameters of a model: all of them, and the trained ones by the module that carries them."""

from typing import Any

from peft import PeftModel

from finetune_trainer.session.run import ParameterCounts

CARRIERS = ("lora_", "ia3_", "hada_", "lokr_", "oft_", "vera_", "miss_", "boft_")
"""How the names of the parts begin that PEFT puts into a module."""
NO_MODULES = ("default", "weight", "bias", "modules_to_save", "original_module", "base_layer")


def count_parameters(model: Any) -> ParameterCounts:
    """What is trained, by the last part of the name of the module that carries it, the largest first."""
    modules: dict[str, int] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            modules[module_of(name)] = modules.get(module_of(name), 0) + weight.numel()
    # both count what 4-bit weights stand for, not the bytes that they are packed into
    total = model.get_nb_trainable_parameters()[1] if isinstance(model, PeftModel) else model.num_parameters()
    return ParameterCounts(sum(modules.values()), total, sorted(modules.items(), key=lambda item: (-item[1], item[0])))


def module_of(name: str) -> str:
    """``q_proj`` of ``base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight``."""
    parts = [part for part in name.split(".") if part not in NO_MODULES and not part.isdigit()]
    if "prompt_encoder" in parts:
        return "prompt_encoder"
    carriers = [index for index, part in enumerate(parts) if part.startswith(CARRIERS)]
    at = carriers[0] if carriers else len(parts)
    return parts[at - 1] if at else name
