"""Describe vLLM: its arguments, limits and features, as of 0.32.

Its driver, which needs an HTTP client, is imported only when one is opened.
"""

import shlex
from collections.abc import Mapping
from functools import partial

from finetune_engines.base import Driver, Engine, EngineKeys
from finetune_engines.lora import find_unplain
from finetune_engines.vllm.versions import judge_version


def adapter_command(base: str, adapter: str, name: str, rank: int) -> str:
    """Return the shell command that serves ``base`` with one adapter."""
    module = shlex.quote(f"{name}={adapter}")
    maximum = ENGINE.fitting_rank(rank) or ENGINE.ranks[-1]
    return f"vllm serve {shlex.quote(base)} --enable-lora \\\n  --max-lora-rank {maximum} --lora-modules {module}"


def model_command(model: str, name: str) -> str:
    """Return the shell command that serves a whole model."""
    return f"vllm serve {shlex.quote(model)} --served-model-name {shlex.quote(name)}"


def connect(url: str, keys: EngineKeys, _: Mapping[str, str]) -> Driver:
    """Open a driver for the vLLM at ``url``."""
    from finetune_engines.vllm.driver import VllmDriver

    return VllmDriver(url, keys)


ENGINE = Engine(
    name="vllm",
    title="vLLM",
    port=8000,
    start_words=("--model", "serve"),
    config_arguments=("--config",),
    lora_arguments=("--enable-lora",),
    max_rank_argument="--max-lora-rank",
    default_max_rank=16,
    modules_argument="--lora-target-modules",
    slot_arguments=("--max-cpu-loras", "--max-loras"),
    default_slots=1,
    base_arguments=("--model",),
    ranks=(1, 8, 16, 32, 64, 128, 256, 320, 512),
    environment={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": ("1", "true")},
    # PEFT saves these with an adapter of the embedding.
    ignored_tensors=(".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight"),
    find_unsupported=partial(find_unplain, engine="vLLM"),
    judge_version=judge_version,
    client_model=lambda base, name: name,
    adapter_command=adapter_command,
    model_command=model_command,
    connect=connect,
)
