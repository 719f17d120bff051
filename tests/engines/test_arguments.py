"""What a container's arguments tell about vLLM's LoRA support, and what they leave open."""

from dataclasses import replace

import pytest

from finetune_api.engines import EngineName
from finetune_engines import ENGINES
from finetune_engines.arguments import EngineArgs, read_engine_args

SERVE = ["vllm", "serve", "/models/base"]
CASES = {
    "default maximum": ({"command": SERVE, "args": ["--enable-lora"]}, EngineArgs(True, 16, 1)),
    "two words": ({"args": [*SERVE, "--enable-lora", "--max-lora-rank", "64"]}, EngineArgs(True, 64, 1)),
    "one word": ({"args": [*SERVE, "--enable-lora", "--max-lora-rank=64"]}, EngineArgs(True, 64, 1)),
    "underscores": ({"args": [*SERVE, "--enable_lora", "--max_lora_rank=64"]}, EngineArgs(True, 64, 1)),
    "module": (
        {"command": ["python3", "-m", "vllm.entrypoints.openai.api_server", "--model=/m", "--enable-lora"]},
        EngineArgs(True, 16, 1),
    ),
    "arguments of the image's own entry point": ({"args": ["--model", "/m", "--enable-lora"]}, EngineArgs(True, 16, 1)),
    "no LoRA": ({"command": SERVE}, EngineArgs(False, None)),
    "shell": (
        {"command": ["/bin/sh", "-c", "exec vllm serve /m --enable-lora --max-lora-rank 32"]},
        EngineArgs(True, 32, 1),
    ),
    "shell without LoRA": (
        {"command": ["bash", "-ec"], "args": ["vllm serve /m # --enable-lora"]},
        EngineArgs(False, None),
    ),
    "a variable may hold anything": ({"command": ["sh", "-c", "vllm serve /m $EXTRA"]}, EngineArgs(None, None)),
    "a rank in a variable": (
        {"args": [*SERVE, "--enable-lora", "--max-lora-rank=$(RANK)"]},
        EngineArgs(True, None, None),
    ),
    "a configuration file may hold anything": (
        {"args": [*SERVE, "--config", "/etc/vllm.yaml"]},
        EngineArgs(None, None),
    ),
    "nothing given": ({}, EngineArgs(None, None)),
    "a script of the user's": ({"command": ["/start.sh"]}, EngineArgs(None, None)),
}


@pytest.mark.parametrize(("container", "expected"), CASES.values(), ids=CASES.keys())
def test_read_engine_args(container: dict[str, list[str]], expected: EngineArgs) -> None:
    assert replace(read_engine_args(container, ENGINES["vllm"]), base=None) == expected


@pytest.mark.parametrize(
    ("engine", "arguments", "slots", "modules", "base"),
    [
        ("vllm", "serve org/base --enable-lora --max-loras 4", 4, None, "org/base"),
        ("vllm", "serve org/base --enable-lora --max-loras=4 --max-cpu-loras=8", 8, None, "org/base"),
        ("vllm", "serve --model org/base --enable-lora --max-cpu-loras $N", None, None, "org/base"),
        ("vllm", "serve /m --lora-target-modules q_proj v_proj --enable-lora", 1, ("q_proj", "v_proj"), "/m"),
        ("vllm", "serve /m --enable-lora --lora_target_modules=q_proj,v_proj", 1, ("q_proj", "v_proj"), "/m"),
        ("vllm", "serve /m --enable-lora --lora-target-modules", 1, None, "/m"),
        ("vllm", "serve /m --enable-lora --lora-target-modules $MODULES", None, None, "/m"),
        ("vllm", "serve", None, None, None),
        ("sglang", "--model-path org/base --enable-lora --lora-target-modules all", None, None, "org/base"),
        ("sglang", "--model-path org/base --enable-lora --max-loaded-loras 3", 3, None, "org/base"),
    ],
)
def test_slots_modules_and_base(
    engine: EngineName, arguments: str, slots: int | None, modules: tuple[str, ...] | None, base: str | None
) -> None:
    parsed = read_engine_args({"args": arguments.split()}, ENGINES[engine])
    assert (parsed.slots, parsed.modules, parsed.base) == (slots, modules, base)
