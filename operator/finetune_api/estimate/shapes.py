"""The values of a config.json, and the modules that are made of them."""

from collections.abc import Mapping
from typing import Any

from finetune_api.estimate.modules import Module

Config = Mapping[str, Any]


class UnknownArchitectureError(ValueError):
    """The model is of an architecture that has no closed form here, or its config.json lacks a size."""


def size(config: Config, *names: str) -> int:
    """A size, under the first of its names that config.json has."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        if value is not None:
            raise UnknownArchitectureError(f"config.json: {name} must be a positive whole number, found {value!r}")
    raise UnknownArchitectureError(f"config.json of model_type {config.get('model_type')!r} has no {names[0]}")


def size_or(config: Config, default: int, *names: str) -> int:
    """A size that config.json may leave out."""
    return size(config, *names) if any(config.get(name) is not None for name in names) else default


def flag(config: Config, name: str, default: bool) -> bool:
    """A switch that config.json may leave out."""
    value = config.get(name)
    return default if value is None else bool(value)


def linear(name: str, inputs: int, outputs: int, bias: bool = False) -> Module:
    """An ``nn.Linear``."""
    return Module(name, "linear", inputs, outputs, bias)


def embedding(name: str, rows: int, width: int) -> Module:
    """An ``nn.Embedding``."""
    return Module(name, "embedding", rows, width)


def rms(name: str, width: int) -> Module:
    """An RMSNorm."""
    return Module(name, "rmsNorm", width, width)


def norm(name: str, width: int) -> Module:
    """An ``nn.LayerNorm``."""
    return Module(name, "layerNorm", width, width, bias=True)


def head(name: str, hidden: int, vocabulary: int, tied: bool, bias: bool = False) -> Module:
    """The output head; ``tied`` to the input embeddings or with a weight of its own."""
    return Module(name, "linear", hidden, vocabulary, bias, tied)
