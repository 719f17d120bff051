"""Read sizes from a config.json, and make modules of them."""

from collections.abc import Mapping
from typing import Any

from finetune_api.estimate.modules import Module

Config = Mapping[str, Any]


class UnknownArchitectureError(ValueError):
    """The model's architecture has no closed form here, or its config.json lacks a size."""


def size(config: Config, *names: str) -> int:
    """Return a size, under the first of its names that config.json has.

    Raises:
        UnknownArchitectureError: config.json has none of the names, or its value is no positive whole number.
    """
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        if value is not None:
            raise UnknownArchitectureError(f"config.json: {name} must be a positive whole number, found {value!r}")
    raise UnknownArchitectureError(f"config.json of model_type {config.get('model_type')!r} has no {names[0]}")


def size_or(config: Config, default: int, *names: str) -> int:
    """Return a size, or ``default`` if config.json has none of the names."""
    return size(config, *names) if any(config.get(name) is not None for name in names) else default


def flag(config: Config, name: str, default: bool) -> bool:
    """Return a switch, or ``default`` if config.json does not have it."""
    value = config.get(name)
    return default if value is None else bool(value)


def linear(name: str, inputs: int, outputs: int, bias: bool = False) -> Module:
    """Return an ``nn.Linear``."""
    return Module(name, "linear", inputs, outputs, bias)


def embedding(name: str, rows: int, width: int) -> Module:
    """Return an ``nn.Embedding``."""
    return Module(name, "embedding", rows, width)


def rms(name: str, width: int) -> Module:
    """Return an RMSNorm."""
    return Module(name, "rmsNorm", width, width)


def norm(name: str, width: int) -> Module:
    """Return an ``nn.LayerNorm``."""
    return Module(name, "layerNorm", width, width, bias=True)


def head(name: str, hidden: int, vocabulary: int, tied: bool, bias: bool = False) -> Module:
    """Return the output head; if ``tied``, its weight is that of the input embeddings."""
    return Module(name, "linear", hidden, vocabulary, bias, tied)
