"""Find features of a PEFT adapter that a plain LoRA does not have, in its adapter_config.json.

Engines serve plain LoRAs. Each problem is one sentence with its remedy.
"""

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
_SCALES = {
    "use_rslora": "rank-stabilised scaling (use_rslora)",
    "rank_pattern": "ranks of its own for some modules (rank_pattern)",
    "alpha_pattern": "scales of their own for some modules (alpha_pattern)",
}


def find_unplain(config: Mapping[str, Any], engine: str) -> list[str]:
    """Return the features of an adapter other than plain LoRA factors, one sentence each.

    Args:
        config: Its adapter_config.json.
        engine: Title of the engine that cannot serve it.
    """
    kind = str(config.get("peft_type", "")).upper()
    if kind != "LORA":
        return [
            f"its method is {kind or 'unknown'} (peft_type), and {engine} serves LORA only: "
            "merge it into the base, or train a LoRA"
        ]
    problems = [
        f"it uses {name}, which {engine} does not support" for key, name in _FEATURES.items() if config.get(key)
    ]
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
            f"it adapts single parameters (target_parameters), which {engine} does not serve: train with target_modules"
        )
    return problems


def find_special_scales(config: Mapping[str, Any], engine: str) -> list[str]:
    """Return the settings because of which a scale is not ``lora_alpha / r``, one sentence each."""
    return [
        f"it has {name}, which {engine} ignores, so its scale would be wrong: train without it"
        for key, name in _SCALES.items()
        if config.get(key)
    ]
