"""Compare the shapes in the weights' headers with config.json, without torch."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from finetune_api.estimate.architecture import architecture_of
from finetune_api.estimate.modules import Module
from finetune_artifacts.safetensors import Tensor

EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "embeddings")
"""The last part of the name of the token embeddings."""
OTHER_TOWERS = re.compile(r"(^|\.)(vision|visual|image|audio|speech|mtp)\w*\.")
"""Names of tensors in other parts of a model than its language model."""
LAYER = re.compile(r"(?P<prefix>(?:.*\.)?(?:layers|h|blocks|block))\.(?P<number>\d+)\.")
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
PREDICTION_KEYS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_layers")
"""Names of the number of additional layers that predict further tokens; transformers leaves them out."""
TEXT_KEYS = ("text_config", "llm_config", "language_config")
WIDTH_KEYS = ("hidden_size", "n_embd", "d_model")
OLD_NAMES = {"lm_head": ("embed_out",)}
"""Names in the files of modules that transformers has renamed."""
PREFIXES = ("model.", "transformer.", "gpt_neox.")


def language_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a config.json that describes the language model."""
    return next((config[key] for key in TEXT_KEYS if isinstance(config.get(key), dict)), config)


def find_embeddings(tensors: Mapping[str, Tensor]) -> tuple[str, Tensor] | None:
    """Return the token embeddings: name and tensor; None if they are not known for certain."""
    embeddings = {
        name: tensor
        for name, tensor in tensors.items()
        if name.removesuffix(".weight").rsplit(".", 1)[-1] in EMBEDDINGS
        and len(tensor.shape) == 2
        and not OTHER_TOWERS.search(name)
    }
    return next(iter(embeddings.items())) if len({tensor.shape for tensor in embeddings.values()}) == 1 else None


def find_differences(config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, scores: bool = False) -> list[str]:
    """List the differences between the weights and config.json, the most telling first.

    Args:
        config: The config.json.
        tensors: The tensors of the weights.
        scores: Whether the model will score texts, for which it needs no output head.
    """
    if config.get("quantization_config"):
        return []
    text, module_differences = language_config(config), [*_compare_modules(config, tensors, scores)]
    return [*_compare_embeddings(text, tensors), *_compare_layers(text, tensors), *module_differences]


def _compare_embeddings(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    embeddings = find_embeddings(tensors)
    if embeddings is None:
        return
    name, (rows, width) = embeddings[0], embeddings[1].shape
    size = config.get("vocab_size")
    if isinstance(size, int) and size != rows:
        yield f"config.json has vocab_size {size}, but {name} has {rows} rows"
    hidden = next((config[key] for key in WIDTH_KEYS if isinstance(config.get(key), int)), None)
    narrower = {"word_embed_proj_dim", "embedding_size", "embed_dim"} & set(config)
    if hidden is not None and hidden != width and not narrower:
        yield f"config.json has {hidden} as the width of the hidden states, but {name} has {width} columns"


def _compare_layers(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    layers = next((config[key] for key in LAYER_KEYS if isinstance(config.get(key), int)), None)
    numbers: dict[str, set[int]] = {}
    for name in tensors:
        if (match := LAYER.match(name)) and not OTHER_TOWERS.search(name):
            numbers.setdefault(match["prefix"], set()).add(int(match["number"]))
    if layers is None or len(numbers) != 1:
        return
    ((prefix, present),) = numbers.items()
    extra = sum(config[key] for key in PREDICTION_KEYS if isinstance(config.get(key), int))
    if missing := sorted(set(range(layers)) - present):
        yield f"config.json has {layers} layers, but the weights have none with the number {missing[0]} ({prefix})"
    elif max(present) >= layers + extra:
        yield (
            f"config.json has {layers} layers, but the weights have {len(present)} ({prefix}): "
            "the others would be silently left out"
        )


def _compare_modules(config: Mapping[str, Any], tensors: Mapping[str, Tensor], scores: bool) -> Iterator[str]:
    """Compare the linear layers of an architecture that the estimate knows."""
    try:
        known = architecture_of(dict(config))
    except (ValueError, TypeError, KeyError):
        return
    left_out = known.head if scores else None
    modules = [module for module in known.modules if module.is_linear and not module.tied and module is not left_out]
    weights = {module.name: _find_weight(module.name, tensors) for module in modules}
    if not any(weights.values()):
        return  # the files use other names
    for module in modules:
        tensor = weights[module.name]
        if tensor is None:
            yield f"the weights have no {module.name}.weight, which config.json describes"
        elif tensor.shape != (shape := _expected_shape(module)):
            yield f"by config.json {module.name}.weight has the shape {list(shape)}, but the weights have " + str(
                list(tensor.shape)
            )


def _expected_shape(module: Module) -> tuple[int, int]:
    sizes = (module.outputs, module.inputs)
    return sizes if module.kind == "linear" else sizes[::-1]


def _find_weight(name: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Find a module's weight, also under the names of old files and of models with other parts."""
    bare = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)
    names = (name, bare, f"language_model.{name}", f"model.language_model.{bare}", *OLD_NAMES.get(name, ()))
    return next((tensors[f"{module}.weight"] for module in names if f"{module}.weight" in tensors), None)
