"""Let bitsandbytes quantize models whose linear layers are of a class of their own, which it would skip."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch

LINEAR_CLASSES = {"falcon": ("transformers.models.falcon.modeling_falcon", "FalconLinear")}
"""Module and name of subclasses of ``torch.nn.Linear`` that compute the same, by the type of the model."""


@contextmanager
def plain_linear_layers(directory: Path) -> Iterator[None]:
    """Build models with ``torch.nn.Linear`` instead of their own linear class within this block."""
    model_type = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("model_type")
    if model_type not in LINEAR_CLASSES:
        yield
        return
    module_name, name = LINEAR_CLASSES[model_type]
    module = import_module(module_name)
    original = getattr(module, name)
    setattr(module, name, torch.nn.Linear)
    try:
        yield
    finally:
        setattr(module, name, original)
