"""What vLLM can serve of what PEFT can train, told from adapter_config.json. One message per problem, with its remedy."""

from typing import Any

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that --max-lora-rank may have."""
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Initialisations that leave the base as it is. PiSSA, OLoRA, CorDA and LoftQ change it."""
_FLAGS = {
    "use_dora": "DoRA (use_dora)",
    "lora_bias": "biases in the adapter (lora_bias)",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens)",
    "layer_replication": "layer replication (layer_replication)",
    "trainable_token_indices": "trained tokens (trainable_token_indices)",
    "use_bdlora": "block-diagonal LoRA (use_bdlora)",
    "use_qalora": "QALoRA (use_qalora)",
}


def features(config: dict[str, Any]) -> list[str]:
    """What in adapter_config.json vLLM cannot serve, a sentence each."""
    kind = str(config.get("peft_type", "")).upper()
    if kind != "LORA":
        return [
            f"its method is {kind or 'unknown'} (peft_type), and vLLM serves LORA only: merge it into the base, or train a LoRA"
        ]
    found = [f"it uses {name}, which vLLM does not support" for key, name in _FLAGS.items() if config.get(key)]
    if (bias := config.get("bias", "none")) != "none":
        found.append(f"it has trained biases (bias: {bias!r}): train with bias none")
    if saved := config.get("modules_to_save"):
        found.append(
            f"it has fully trained modules (modules_to_save: {', '.join(saved)}): train without them, or merge the adapter into the base"
        )
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        found.append(
            f"its initialisation {init!r} changed the base weights (init_lora_weights): save it with PEFT's path_initial_model_for_weight_conversion"
        )
    if config.get("target_parameters"):
        found.append(
            "it adapts bare parameters (target_parameters), which vLLM serves for no such adapter: train with target_modules"
        )
    return found
