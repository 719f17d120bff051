"""Describe SGLang: its arguments, limits and features, as of 0.5.23.

Its driver, which needs an HTTP client, is imported only when one is opened.
"""

import shlex
from collections.abc import Mapping
from typing import Any

from finetune_engines.base import Driver, Engine, EngineKeys
from finetune_engines.lora import find_special_scales, find_unplain
from finetune_engines.sglang.versions import judge_version


def find_unsupported(config: Mapping[str, Any]) -> list[str]:
    """Return what SGLang cannot serve of an adapter_config.json, one sentence each."""
    return [*find_unplain(config, "SGLang"), *find_special_scales(config, "SGLang")]


def adapter_command(base: str, adapter: str, name: str, rank: int) -> str:
    """Return the shell command that serves ``base`` with one adapter, which has this rank."""
    module = shlex.quote(f"{name}={adapter}")
    return (
        f"python -m sglang.launch_server --model-path {shlex.quote(base)} --enable-lora \\\n"
        f"  --max-lora-rank {rank} --lora-target-modules all --lora-paths {module}"
    )


def model_command(model: str, name: str) -> str:
    """Return the shell command that serves a whole model."""
    path, served_name = shlex.quote(model), shlex.quote(name)
    return f"python -m sglang.launch_server --model-path {path} --served-model-name {served_name}"


def connect(url: str, keys: EngineKeys, _: Mapping[str, str]) -> Driver:
    """Open a driver for the SGLang at ``url``."""
    from finetune_engines.sglang.driver import SglangDriver

    return SglangDriver(url, keys)


ENGINE = Engine(
    name="sglang",
    title="SGLang",
    port=30000,
    start_words=("sglang.launch_server", "serve", "--model-path", "--model"),
    config_arguments=("--config",),
    # --lora-paths turns LoRA on too
    lora_arguments=("--enable-lora", "--lora-paths"),
    max_rank_argument="--max-lora-rank",
    default_max_rank=None,
    modules_argument="--lora-target-modules",
    slot_arguments=("--max-loaded-loras",),
    default_slots=None,
    base_arguments=("--model-path", "--model"),
    ranks=(8, 16, 32, 64, 128, 256, 512),
    environment={},
    ignored_tensors=(),
    find_unsupported=find_unsupported,
    judge_version=judge_version,
    client_model=lambda base, name: f"{base}:{name}",
    adapter_command=adapter_command,
    model_command=model_command,
    connect=connect,
)
