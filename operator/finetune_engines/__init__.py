"""Register the inference engines: their arguments, limits, features, and the drivers that call them.

Operator, agent, trainer and command line read engines from here. This package must know none of them, nor Kubernetes
or S3.

To add an engine, add its name to ``finetune_api.engines.EngineName`` and a module of that name here, which defines
``ENGINE``. The module must import its HTTP client only when a driver is opened: the operator has none.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, get_args

from finetune_api.engines import EngineName
from finetune_engines.base import Engine

ENGINES: dict[EngineName, Engine] = {
    name: import_module(f"finetune_engines.{name}").ENGINE for name in get_args(EngineName)
}


def list_lora_engines() -> list[Engine]:
    """Return the engines that serve adapters beside their base."""
    return [engine for engine in ENGINES.values() if not engine.serves_merged]


def engines_that_serve(adapter_config: Mapping[str, Any]) -> list[str]:
    """Return the engines that can serve an adapter, by its adapter_config.json."""
    return [engine.name for engine in list_lora_engines() if not engine.find_unsupported(adapter_config)]


def list_refusals(adapter_config: Mapping[str, Any]) -> dict[str, str]:
    """Return why engines cannot serve an adapter, by the engine's title."""
    problems = {engine.title: engine.find_unsupported(adapter_config) for engine in list_lora_engines()}
    return {title: "; ".join(texts) for title, texts in problems.items() if texts}


def highest_rank() -> int:
    """Return the highest LoRA rank that any engine serves."""
    return max(engine.ranks[-1] for engine in list_lora_engines())
