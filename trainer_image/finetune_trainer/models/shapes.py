"""Compare the shapes in the weights' headers with config.json, without torch."""

import re
from collections.abc import Iterable, Iterator, Mapping
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
NORMS = ("rmsNorm", "layerNorm")
PREFIXES = ("model.", "transformer.", "gpt_neox.")
WRAPPERS = {
    "module.": "torch's data parallelism puts before them: save the model within the wrapper (model.module)",
    "_orig_mod.": "torch.compile puts before them: save the model that was compiled (model._orig_mod)",
    "base_model.model.": "PEFT puts before them: save what merge_and_unload() returns",
}
"""Prefixes of all names in the files of a model that was saved with a wrapper around it."""
ENCODER_HEADS = ("cls.", "lm_head.", "generator_")
"""How the names of the head begin that models of BERT's family write text with."""
ADDITIONAL_ROWS = {"mllama_text_model": 8}
"""Rows of the token embeddings beyond vocab_size, by the type of the language model (Llama 3.2's image tokens)."""


def language_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a config.json that describes the language model."""
    return next((config[key] for key in TEXT_KEYS if isinstance(config.get(key), dict)), config)


def count_layers(config: Mapping[str, Any]) -> int | None:
    """Return the number of layers of a language model's configuration; None if it does not have it."""
    return next((config[key] for key in LAYER_KEYS if isinstance(config.get(key), int)), None)


def find_width(config: Mapping[str, Any]) -> int | None:
    """Return the width of the hidden states of a language model's configuration; None if it does not have it."""
    return next((config[key] for key in WIDTH_KEYS if isinstance(config.get(key), int)), None)


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


def has_encoder_head(tensors: Iterable[str]) -> bool:
    """Return whether a model of BERT's family has the head that writes text, among these names of its tensors."""
    return any(name.startswith(ENCODER_HEADS) for name in tensors)


def find_differences(config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, scores: bool = False) -> list[str]:
    """List the differences between the weights and config.json, the most telling first.

    Args:
        config: The config.json.
        tensors: The tensors of the weights.
        scores: Whether the model will score texts, for which it needs no output head.
    """
    if wrapped := _find_wrapper(tensors):
        return [wrapped]
    text, module_differences = language_config(config), [*_compare_modules(config, tensors, scores)]
    return [*_compare_embeddings(text, tensors), *_compare_layers(text, tensors), *module_differences]


def _find_wrapper(tensors: Mapping[str, Tensor]) -> str | None:
    """Find the prefix of a wrapper around the model that all names have, and say how to save the model without it."""
    return next(
        (
            f"the names of all weights begin with {prefix!r}, which {source}"
            for prefix, source in WRAPPERS.items()
            if tensors and all(name.startswith(prefix) for name in tensors)
        ),
        None,
    )


def _compare_embeddings(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    embeddings = find_embeddings(tensors)
    if embeddings is None:
        return
    name, (rows, width) = embeddings[0], embeddings[1].shape
    size, additional = config.get("vocab_size"), ADDITIONAL_ROWS.get(str(config.get("model_type")), 0)
    if isinstance(size, int) and size + additional != rows:
        yield f"config.json has vocab_size {size}, but {name} has {rows} rows"
    hidden = find_width(config)
    narrower = {"word_embed_proj_dim", "embedding_size", "embed_dim"} & set(config)
    if hidden is not None and hidden != width and not narrower:
        yield f"config.json has {hidden} as the width of the hidden states, but {name} has {width} columns"


def _compare_layers(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    layers = count_layers(config)
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
    """Compare the linear layers and the norms of an architecture that the estimate knows."""
    try:
        known = architecture_of(dict(config))
    except (ValueError, TypeError, KeyError):
        return
    left_out = known.head if scores else None
    linear = [module for module in known.modules if module.is_linear and not module.tied and module is not left_out]
    norms = [module for module in known.modules if module.kind in NORMS]
    for modules in (linear, norms):
        if any(_find_tensor(module.name, "weight", tensors) for module in modules):  # else the files use other names
            for module in modules:
                yield from _compare_module(module, tensors)


def _compare_module(module: Module, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    shapes = {"weight": _expected_shape(module), **({"bias": (module.outputs,)} if module.bias else {})}
    for part, shape in shapes.items():
        tensor = _find_tensor(module.name, part, tensors)
        if tensor is None:
            yield f"the weights have no {module.name}.{part}, which config.json describes"
        elif tensor.shape != shape:
            yield f"by config.json {module.name}.{part} has the shape {list(shape)}, but the weights have " + str(
                list(tensor.shape)
            )


def _expected_shape(module: Module) -> tuple[int, ...]:
    if module.kind in NORMS:
        return (module.outputs,)
    sizes = (module.outputs, module.inputs)
    return sizes if module.kind == "linear" else sizes[::-1]


def _find_tensor(name: str, part: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Find the weight or bias of a module, also under the names of old files and of models with other parts."""
    bare = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)
    names = (name, bare, f"language_model.{name}", f"model.language_model.{bare}", *OLD_NAMES.get(name, ()))
    return next((tensors[f"{module}.{part}"] for module in names if f"{module}.{part}" in tensors), None)
