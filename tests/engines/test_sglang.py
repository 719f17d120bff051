"""Facts about SGLang: its versions, its arguments, and what its error answers mean (by the code of 0.5.23)."""

from dataclasses import replace

import httpx
import pytest

from finetune_api.reasons import Reason
from finetune_engines import ENGINES
from finetune_engines.arguments import EngineArgs, read_engine_args
from finetune_engines.sglang.refusals import LOAD, UNLOAD, explain_refusal
from finetune_engines.sglang.versions import judge_version

SGLANG = ENGINES["sglang"]


@pytest.mark.parametrize("version", ["0.5.8", "0.5.8.post1", "0.5.23", "0.6.0rc1"])
def test_a_version_that_lists_its_adapters_serves_plain_ones(version: str) -> None:
    judged = judge_version(version)
    assert judged.find_misserved({"peft_type": "LORA"}) == []
    assert not judged.load_disturbs_requests
    assert not judged.name_keeps_cache


@pytest.mark.parametrize("version", ["0.4.9", "0.5.7", None, "main"])
def test_another_version_is_refused_with_the_one_that_is_needed(version: str | None) -> None:
    judged = judge_version(version)
    (problem,) = judged.find_misserved({"peft_type": "LORA"})
    assert "use SGLang 0.5.8 or newer" in problem
    assert problem in judged.limits


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--model-path=/m", "--enable-lora", "--max-lora-rank", "64"], EngineArgs(lora=True, max_lora_rank=64)),
        (["--model-path=/m", "--lora-paths", "a=/a"], EngineArgs(lora=True, max_lora_rank=None)),
        (["--model-path=/m"], EngineArgs(lora=False, max_lora_rank=None)),
        (["--tp=2"], EngineArgs(lora=None, max_lora_rank=None)),
        (["--model-path=/m", "--config=/c.yaml"], EngineArgs(lora=None, max_lora_rank=None)),
    ],
)
def test_arguments_tell_whether_lora_is_on(args: list[str], expected: EngineArgs) -> None:
    assert replace(read_engine_args({"args": args}, SGLANG), base=None) == expected


def flat(message: str) -> dict[str, object]:
    return {"success": False, "error_message": message, "loaded_adapters": {}}


CASES = {
    "LoRA off": (LOAD, 400, flat("LoRA is not enabled. Please set `--enable-lora`"), Reason.LORA_DISABLED, "permanent"),
    "no such route": (LOAD, 404, {"detail": "Not Found"}, Reason.LORA_DISABLED, "permanent"),
    "pool": (
        LOAD,
        400,
        flat("LoRA adapter a with rank 32 is incompatible with the current LoRA memory pool configuration."),
        Reason.ADAPTER_UNSUPPORTED,
        "permanent",
    ),
    "DoRA": (
        LOAD,
        400,
        flat("Failed to load a because LoRA serving currently doesn't support DoRA adapters"),
        Reason.ADAPTER_UNSUPPORTED,
        "permanent",
    ),
    "data-parallel": (LOAD, 500, "data-parallel replicas are not supported", Reason.ENGINE_REFUSED, "permanent"),
    "pins": (
        LOAD,
        400,
        flat("It is not allowed to pin all slots in the LoRA memory pool"),
        Reason.ENGINE_REFUSED,
        "later",
    ),
    "full": (
        LOAD,
        400,
        flat("Didn't find any LoRA adapters when trying to evict LRU LoRA adapter."),
        Reason.ENGINE_REFUSED,
        "later",
    ),
    "path": (LOAD, 400, flat("[Errno 2] No such file or directory: '/adapters/x'"), Reason.ENGINE_REFUSED, "later"),
    "name": (
        LOAD,
        400,
        flat("Failed to load LoRA adapter a because it is already loaded"),
        Reason.ENGINE_REFUSED,
        "later",
    ),
    "key": (UNLOAD, 401, {"error": "Unauthorized"}, Reason.ENGINE_REFUSED, "later"),
    "vocabulary": (
        "/generate",
        400,
        {"error": {"message": "token_ids_logprob contains out-of-vocabulary token id 9; valid range is [0, 5)."}},
        Reason.BASE_MODEL_MISMATCH,
        "permanent",
    ),
    "length": (
        "/generate",
        400,
        {"error": {"message": "The input (9000 tokens) is longer than the model's context length (8192 tokens)."}},
        Reason.BASE_MODEL_MISMATCH,
        "permanent",
    ),
    "busy": ("/generate", 503, {"error": {"message": "The request queue is full."}}, Reason.ENGINE_REFUSED, "later"),
    "unknown": (LOAD, 500, "Internal Server Error", Reason.ENGINE_REFUSED, "a few times"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_error_answer_has_its_reason_and_says_whether_to_try_again(name: str) -> None:
    path, status, body, reason, again = CASES[name]
    request = httpx.Request("POST", f"http://engine{path}")
    answer = (
        httpx.Response(status, text=body, request=request)
        if isinstance(body, str)
        else httpx.Response(status, json=body, request=request)
    )
    error = explain_refusal(path, answer)
    assert error.reason is reason
    retry = "permanent" if error.permanent else "a few times" if error.unexplained else "later"
    assert retry == again


def test_the_command_of_a_report_serves_the_adapter_with_its_rank() -> None:
    command = SGLANG.adapter_command("org/base", "/out/adapter", "bot", 24)
    assert "--max-lora-rank 24" in command
    assert "--lora-paths bot=/out/adapter" in command
