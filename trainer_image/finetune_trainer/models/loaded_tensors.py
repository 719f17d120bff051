"""Describe the tensors of a model as transformers loads them: renamed, with fused experts, and without other towers.

It needs no torch. The renaming is that of transformers/conversion_mapping.py and of the models' key_mapping.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetune_api import transformers_tables
from finetune_artifacts.safetensors import Tensor
from finetune_trainer.models.base_files import ModelMetadata
from finetune_trainer.models.shapes import LAYER, OTHER_TOWERS, PREDICTION_KEYS, count_layers, language_config

Renaming = tuple[str, str]
_WITHOUT_TOWERS = {"llama4", "mllama", "qwen3_5", "qwen3_5_moe", "qwen4_exp"}
"""Types whose causal language model is the text model alone, with the configuration of the text model."""
_TEXT_MODEL: list[Renaming] = [
    (r"^(model\.)?language_model\.lm_head\.", "lm_head."),
    (r"^(model\.)?language_model\.(model\.)?", "model."),
]
_WHOLE_MODEL: list[Renaming] = [
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.(model\.)?", "model.language_model."),
    (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
]
_MIXTRAL: list[Renaming] = [(r"\.block_sparse_moe\.", ".mlp.")]
_GRANITE_MOE: list[Renaming] = [
    (r"\.block_sparse_moe\.input_linear\.weight$", ".block_sparse_moe.experts.gate_up_proj"),
    (r"\.block_sparse_moe\.output_linear\.weight$", ".block_sparse_moe.experts.down_proj"),
    (r"\.block_sparse_moe\.router\.layer\.weight$", ".block_sparse_moe.router.weight"),
]
_RENAMINGS: dict[str, list[Renaming]] = {
    **dict.fromkeys(_WITHOUT_TOWERS, _TEXT_MODEL),
    **dict.fromkeys(("gemma3n_text", "qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp_text"), _TEXT_MODEL),
    **dict.fromkeys(("gemma3", "got_ocr2"), _WHOLE_MODEL),
    **dict.fromkeys(("mixtral", "minimax", "minimax_m2", "kimi_linear"), _MIXTRAL),
    **dict.fromkeys(("granitemoe", "granitemoeshared", "granitemoehybrid"), _GRANITE_MOE),
    "phimoe": [*_MIXTRAL, (r"\.mlp\.gate\.", ".mlp.router.")],
    "gpt_neox": [(r"^embed_out\.", "lm_head.")],
    "nemotron_h": [(r"^backbone\.", "model.")],
}
_TRANSFORMER = {"bloom", "codegen", "ctrl", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "mpt", "openai-gpt"}
"""Types whose old files leave out the first part of the names, ``transformer``."""
_PREDICTION = re.compile(r"^(model\.)?(language_model\.)?mtp(_\w+)?\.")
_PROJECTOR = re.compile(r"(^|\.)multi_modal_projector\.")
_EXPERT = re.compile(r"(?P<experts>.*\.experts)\.\d+\.(?P<layer>gate_proj|up_proj|down_proj|w1|w2|w3)\.weight$")
_FUSED = {
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
    "w1": "gate_up_proj",
    "w3": "gate_up_proj",
    "down_proj": "down_proj",
    "w2": "down_proj",
}
"""The parameter of all experts that transformers makes of a layer of each expert."""
_BUFFERS = re.compile(
    r"(^|\.)(inv_freq|masked_bias|slope_rate|(query|key|diagonal)_decay|act_fn\.(beta|eps)|layer_scalar)$"
    r"|\.(gate|mlp|block_sparse_moe)\.e_score_correction_bias$|\.feed_forward\.expert_bias$|\.(attn|attention)\.bias$"
)
"""Names of tensors in files that are no parameters in transformers."""


def describe_loaded(metadata: ModelMetadata, *, trusts_remote_code: bool = False) -> ModelMetadata:
    """Return the metadata with the configuration and the tensors of the model that transformers loads.

    Args:
        metadata: The metadata of the files.
        trusts_remote_code: Whether code of the model may run. It builds the modules that the files name.
    """
    config, model_type = metadata.config, metadata.config.get("model_type")
    runs_own_code = trusts_remote_code and bool(config.get("auto_map"))
    if runs_own_code or not isinstance(model_type, str) or not transformers_tables.is_known(model_type):
        return metadata
    text = language_config(config) if model_type in _WITHOUT_TOWERS else config
    is_bare = model_type in _TRANSFORMER and not any(name.startswith("transformer.") for name in metadata.tensors)
    tensors = {
        f"transformer.{name}" if is_bare and not name.startswith("lm_head.") else _rename(name, model_type): tensor
        for name, tensor in metadata.tensors.items()
        if not _is_left_out(name, config, model_type)
    }
    return replace(metadata, config=dict(text), tensors=drop_buffers(fuse_experts(tensors)))


def fuse_experts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with one parameter for the same layers of all experts, as transformers 5 holds them."""
    fused: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        match = _EXPERT.match(name)
        fused.setdefault(f"{match['experts']}.{_FUSED[match['layer']]}" if match else name, []).append(tensor)
    return {name: parts[0] if len(parts) == 1 else _stack(parts) for name, parts in fused.items()}


def drop_buffers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that are parameters: no tables of frequencies, no corrections of the router."""
    return {name: tensor for name, tensor in tensors.items() if not _BUFFERS.search(name)}


def _stack(parts: list[Tensor]) -> Tensor:
    return Tensor(parts[0].dtype, (sum(math.prod(part.shape[:-1]) for part in parts), parts[0].shape[-1]))


def _rename(name: str, model_type: str) -> str:
    for pattern, replacement in _RENAMINGS.get(model_type, ()):
        name = re.sub(pattern, replacement, name, count=1)
    return name


def _is_left_out(name: str, config: Mapping[str, Any], model_type: str) -> bool:
    """Return whether transformers does not load this tensor: it belongs to another tower or predicts more tokens."""
    if _PREDICTION.match(name):
        return True
    if _RENAMINGS.get(model_type) is _TEXT_MODEL and (OTHER_TOWERS.search(name) or _PROJECTOR.search(name)):
        return True
    text = language_config(config)
    layers = count_layers(text)
    predicts = any(isinstance(text.get(key), int) and text[key] > 0 for key in PREDICTION_KEYS)
    match = LAYER.match(name)
    return bool(
        predicts and layers is not None and match and not OTHER_TOWERS.search(name) and int(match["number"]) >= layers
    )
