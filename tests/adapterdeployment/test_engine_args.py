"""What a container's arguments tell about vLLM's LoRA support, and what they leave open."""

import pytest

from finetune_engines import ENGINES
from finetune_operator.policies.engine_args import EngineArgs, read_engine_args

SERVE = ["vllm", "serve", "/models/base"]
CASES = {
    "default maximum": ({"command": SERVE, "args": ["--enable-lora"]}, EngineArgs(True, 16)),
    "two words": ({"args": [*SERVE, "--enable-lora", "--max-lora-rank", "64"]}, EngineArgs(True, 64)),
    "one word": ({"args": [*SERVE, "--enable-lora", "--max-lora-rank=64"]}, EngineArgs(True, 64)),
    "underscores": ({"args": [*SERVE, "--enable_lora", "--max_lora_rank=64"]}, EngineArgs(True, 64)),
    "module": (
        {"command": ["python3", "-m", "vllm.entrypoints.openai.api_server", "--model=/m", "--enable-lora"]},
        EngineArgs(True, 16),
    ),
    "arguments of the image's own entry point": ({"args": ["--model", "/m", "--enable-lora"]}, EngineArgs(True, 16)),
    "no LoRA": ({"command": SERVE}, EngineArgs(False, None)),
    "shell": (
        {"command": ["/bin/sh", "-c", "exec vllm serve /m --enable-lora --max-lora-rank 32"]},
        EngineArgs(True, 32),
    ),
    "shell without LoRA": (
        {"command": ["bash", "-ec"], "args": ["vllm serve /m # --enable-lora"]},
        EngineArgs(False, None),
    ),
    "a variable may hold anything": ({"command": ["sh", "-c", "vllm serve /m $EXTRA"]}, EngineArgs(None, None)),
    "a rank in a variable": ({"args": [*SERVE, "--enable-lora", "--max-lora-rank=$(RANK)"]}, EngineArgs(True, None)),
    "a configuration file may hold anything": (
        {"args": [*SERVE, "--config", "/etc/vllm.yaml"]},
        EngineArgs(None, None),
    ),
    "nothing given": ({}, EngineArgs(None, None)),
    "a script of the user's": ({"command": ["/start.sh"]}, EngineArgs(None, None)),
}


@pytest.mark.parametrize(("container", "expected"), CASES.values(), ids=CASES.keys())
def test_read_engine_args(container: dict[str, list[str]], expected: EngineArgs) -> None:
    assert read_engine_args(container, ENGINES["vllm"]) == expected
