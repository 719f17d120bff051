"""Refuse values of config.json that transformers reads, but with which it cannot build the model.

They are looked up in the source text of transformers, because its models cannot be imported without torch.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from finetune_artifacts.safetensors import Tensor
from finetune_trainer.models.shapes import find_embeddings, language_config

ACTIVATION = re.compile(r"ACT2FN\[(?:self\.)?config\.(\w+)\]")
PADDING = re.compile(r"nn\.Embedding\([^)]*(?:padding_idx|pad_token_id)")
ROPE = "ROPE_INIT_FUNCTIONS[self.rope_type"
OWN_ROPE = re.compile(r'rope_type == "(\w+)"')
"""A type of rotary embedding that the code of one model computes itself."""
ROPE_KEYS = ("rope_parameters", "rope_scaling")
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation")


def find_bad_value(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str | None:
    """Find a value of config.json with which transformers cannot build the model; None if there is none.

    Args:
        config: The config.json.
        tensors: The tensors of the weights.
    """
    text = language_config(config)
    source = "" if config.get("auto_map") else read_source(str(text.get("model_type")))
    problems = (
        *_list_attentions(config),
        *_list_activations(text, source),
        *_list_ropes(text, source),
        *_list_paddings(text, source, tensors),
    )
    return next(iter(problems), None)


@cache
def read_source(model_type: str) -> str:
    """Return the source text of transformers' models of a type; an empty one if it has none."""
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    name = model_type_to_module_name(model_type)
    path = files("transformers").joinpath("models", name, f"modeling_{name}.py")
    return path.read_text(encoding="utf-8") if path.is_file() else ""


@cache
def list_activations() -> frozenset[str]:
    """List the names of transformers' activation functions (``ACT2CLS``)."""
    tree = ast.parse(files("transformers").joinpath("activations.py").read_text(encoding="utf-8"))
    return frozenset(
        key.value
        for statement in tree.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict)
        if any(isinstance(target, ast.Name) and target.id == "ACT2CLS" for target in statement.targets)
        for key in statement.value.keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    )


def _list_attentions(config: Mapping[str, Any]) -> Iterator[str]:
    for key in ATTENTION_KEYS:
        value = config.get(key)
        if isinstance(value, str) and ("flash" in value or "/" in value):
            yield (
                f"config.json asks for {key} {value!r}, which the trainer does not have: remove {key} from "
                "config.json, and transformers chooses an attention that it has"
            )


def _list_activations(config: Mapping[str, Any], source: str) -> Iterator[str]:
    for key in sorted(set(ACTIVATION.findall(source))):
        value = config.get(key)
        if isinstance(value, str) and value not in list_activations():
            yield (
                f"config.json has {key} {value!r}, which is no activation function of transformers: correct it, or "
                f"copy config.json from the original model; there are {', '.join(sorted(list_activations()))}"
            )


def _list_ropes(config: Mapping[str, Any], source: str) -> Iterator[str]:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    known = {"default", "mrope", "su", *ROPE_INIT_FUNCTIONS, *OWN_ROPE.findall(source)}
    for key in ROPE_KEYS if ROPE in source else ():
        for value in _list_rope_types(config.get(key)):
            if value not in known:
                yield (
                    f"config.json has {key} of type {value!r}, which transformers does not have: correct it, or copy "
                    f"config.json from the original model; there are {', '.join(sorted(known))}"
                )


def _list_rope_types(rope: Any) -> list[str]:
    """List the types of a rotary embedding; some models have one for each kind of layer."""
    if not isinstance(rope, dict):
        return []
    parts = [part for part in rope.values() if isinstance(part, dict)] or [rope]
    values = [part.get("rope_type", part.get("type")) for part in parts]
    return [value for value in values if isinstance(value, str)]


def _list_paddings(config: Mapping[str, Any], source: str, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    padding, embeddings = config.get("pad_token_id"), find_embeddings(tensors)
    if not isinstance(padding, int) or embeddings is None or not PADDING.search(source):
        return
    name, rows = embeddings[0], embeddings[1].shape[0]
    if not -rows <= padding < rows:
        yield (
            f"config.json has pad_token_id {padding}, but {name} has {rows} rows: set it to null in config.json, and "
            "the tokenizer's padding token is used"
        )
