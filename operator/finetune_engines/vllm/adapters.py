"""Tell which PEFT adapters vLLM can serve, from adapter_config.json. One sentence per problem, with its remedy."""

from collections.abc import Mapping
from typing import Any

_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Initialisations that leave the base as it is. PiSSA, OLoRA, CorDA and LoftQ change it."""
_FEATURES = {
    "use_dora": "DoRA (use_dora)",
    "lora_bias": "biases in the adapter (lora_bias)",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens)",
    "layer_replication": "layer replication (layer_replication)",
    "trainable_token_indices": "trained tokens (trainable_token_indices)",
    "use_bdlora": "block-diagonal LoRA (use_bdlora)",
    "use_qalora": "QALoRA (use_qalora)",
}


def find_unsupported(config: Mapping[str, Any]) -> list[str]:
    """Return what vLLM cannot serve of an adapter_config.json, one sentence each."""
    kind = str(config.get("peft_type", "")).upper()
    if kind != "LORA":
        return [
            f"its method is {kind or 'unknown'} (peft_type), and vLLM serves LORA only: "
            "merge it into the base, or train a LoRA"
        ]
    problems = [f"it uses {name}, which vLLM does not support" for key, name in _FEATURES.items() if config.get(key)]
    if (bias := config.get("bias", "none")) != "none":
        problems.append(f"it has trained biases (bias: {bias!r}): train with bias none")
    if saved_modules := config.get("modules_to_save"):
        problems.append(
            f"it has fully trained modules (modules_to_save: {', '.join(saved_modules)}): "
            "train without them, or merge the adapter into the base"
        )
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        problems.append(
            f"its initialisation {init!r} changed the base weights (init_lora_weights): "
            "save it with PEFT's path_initial_model_for_weight_conversion"
        )
    if config.get("target_parameters"):
        problems.append(
            "it adapts single parameters (target_parameters), which vLLM does not serve: train with target_modules"
        )
    return problems
