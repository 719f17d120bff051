"""The inference engines that the agent can drive, one file each. What an engine says on the wire is known in its file only."""

from collections.abc import Callable

from finetune_agent.engines.base import Engine, EngineView
from finetune_agent.engines.vllm import Vllm

__all__ = ["Engine", "EngineView", "open_engine"]

ENGINES: dict[str, Callable[[str, str | None], Engine]] = {"vllm": Vllm}


def open_engine(kind: str, url: str, api_key: str | None) -> Engine:
    """The driver for the engine at ``url``. Raises KeyError for an engine that has none."""
    return ENGINES[kind](url, api_key)
