"""Which misfits of an adapter and an engine are found before any pod changes."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_api.finetunejob import AdapterStatus
from finetune_api.messages import AgentEngine, AgentReport
from finetune_api.reasons import Reason
from finetune_engines import ENGINES
from finetune_engines.arguments import EngineArgs
from finetune_engines.fit import find_misfits, find_warnings
from tests.adapterdeployment.groups import NAME, V1, adapter, deployment, group, job, make_pass, read_conditions, uri

VLLM, SGLANG = ENGINES["vllm"], ENGINES["sglang"]
PLAIN = EngineArgs(lora=True, max_lora_rank=16, slots=4, modules=None, base="Qwen/Qwen3-8B")
TRAINED = AdapterStatus(
    uri=uri(V1),
    digest=V1,
    size_bytes=1,
    base_model="Qwen/Qwen3-8B",
    base_revision="a" * 40,
    peft_type="LORA",
    rank=8,
    target_modules=["q_proj", "v_proj"],
    servable_by=["vllm"],
)


@pytest.mark.parametrize(
    ("trained", "arguments", "reasons", "text"),
    [
        (TRAINED, PLAIN, [], ""),
        (None, PLAIN, [], ""),
        (None, replace(PLAIN, lora=False), [Reason.LORA_DISABLED], "without --enable-lora"),
        (TRAINED, replace(PLAIN, max_lora_rank=4), [Reason.RANK_TOO_HIGH], "the maximum of the container"),
        (TRAINED, replace(PLAIN, modules=("o_proj",)), [Reason.ADAPTER_UNSUPPORTED], "only to o_proj"),
        (
            TRAINED,
            replace(PLAIN, modules=("gate_up_proj", "down_proj")),
            [Reason.ADAPTER_UNSUPPORTED],
            "q_proj, v_proj",
        ),
        (TRAINED, replace(PLAIN, modules=("qkv_proj",)), [], ""),
        (TRAINED, replace(PLAIN, modules=("k_proj",)), [], ""),
        (TRAINED, replace(PLAIN, modules=("query_key_value",)), [], ""),
        (TRAINED.model_copy(update={"target_modules": []}), replace(PLAIN, modules=("o_proj",)), [], ""),
        (
            TRAINED.model_copy(update={"rank": 64, "servable_by": []}),
            replace(PLAIN, modules=("o_proj",)),
            [Reason.ADAPTER_UNSUPPORTED, Reason.RANK_TOO_HIGH, Reason.ADAPTER_UNSUPPORTED],
            "train it with lora or qlora",
        ),
    ],
)
def test_misfits(trained: AdapterStatus | None, arguments: EngineArgs, reasons: list[Reason], text: str) -> None:
    misfits = find_misfits("bot", trained, arguments, VLLM, "the container")
    assert [misfit.reason for misfit in misfits] == reasons
    assert text in " ".join(misfit.message for misfit in misfits)


@pytest.mark.parametrize(
    ("arguments", "adapters", "texts"),
    [
        (PLAIN, 3, []),
        (PLAIN, 4, ["has 4 in memory at once (--max-cpu-loras or --max-loras), and needs room for 5"]),
        (replace(PLAIN, slots=None), 9, []),
        (replace(PLAIN, base="Qwen/Qwen3-4B"), 1, ["serves the base Qwen/Qwen3-4B"]),
        (replace(PLAIN, base="qwen/qwen3-8b"), 1, []),
        (replace(PLAIN, base="/models/qwen"), 1, []),
        (replace(PLAIN, base="./models/qwen"), 1, []),
        (replace(PLAIN, base=None), 1, []),
        (replace(PLAIN, revision="main"), 1, []),
        (replace(PLAIN, revision="a" * 40), 1, []),
        (replace(PLAIN, revision="b" * 40), 1, [f"the adapter was trained on {'a' * 40}"]),
        (replace(PLAIN, chat_template="/chat.jinja"), 1, ["formats chats with /chat.jinja"]),
    ],
)
def test_warnings(arguments: EngineArgs, adapters: int, texts: list[str]) -> None:
    warnings = find_warnings(TRAINED, arguments, VLLM, adapters)
    assert len(warnings) == len(texts)
    assert all(text in warning for text, warning in zip(texts, warnings, strict=True))


@pytest.mark.parametrize(
    ("versions", "refused"),
    [((), False), (("0.5.7",), True), (("0.5.7", "0.5.23"), False), (("0.5.7", None), True), (("0.5.23",), False)],
)
def test_a_version_that_no_pod_can_serve_the_adapter_with_is_refused(
    versions: tuple[str | None, ...], refused: bool
) -> None:
    trained = TRAINED.model_copy(update={"servable_by": ["sglang"]})
    misfits = find_misfits("bot", trained, replace(PLAIN, max_lora_rank=None), SGLANG, "the container", versions)
    assert bool(misfits) is refused
    assert all("use SGLang 0.5.8 or newer" in misfit.message for misfit in misfits)


def test_the_versions_come_from_the_reports_of_the_pods() -> None:
    spec: dict[str, Any] = {"target": {"deploymentRef": {"name": NAME}, "engine": "sglang", "container": "vllm"}}
    args = ["--model-path=/m", "--enable-lora", "--max-lora-rank=16"]
    reports = {"web-a": AgentReport(engine_ready=True, ready=True, engine=AgentEngine(version="0.5.7"))}
    trained = job(servableBy=["sglang"])
    observed = group(adapter(digest=None, **spec), workload=deployment(args=args), finetune_jobs={"job": trained})
    assert read_conditions(make_pass(observed))["Accepted"] == ("True", "Accepted")
    observed = make_pass(replace(observed, agent_reports=reports))
    assert observed.config_map is None
    assert read_conditions(observed)["Accepted"] == ("False", "AdapterUnsupported")


def test_several_problems_are_reported_at_once_and_nothing_is_touched() -> None:
    args = ["--model=/m", "--enable-lora", "--max-lora-rank=4", "--lora-target-modules", "o_proj", "--port=8000"]
    observed = group(adapter(digest=None), workload=deployment(args=args), finetune_jobs={"job": job()})
    observed.finetune_jobs["job"]["status"]["adapter"]["targetModules"] = ["q_proj"]
    observed = make_pass(observed)
    assert observed.config_map is None
    assert read_conditions(observed)["Accepted"] == ("False", "RankTooHigh")
    (accepted,) = [item for item in observed.resources[0]["status"]["conditions"] if item["type"] == "Accepted"]
    assert "--max-lora-rank 8" in accepted["message"]
    assert "--lora-target-modules" in accepted["message"]


def test_an_engine_with_one_slot_is_warned_of_and_served() -> None:
    one_slot = deployment(args=["--model=/m", "--enable-lora"])
    observed = make_pass(group(adapter(), workload=one_slot))
    assert observed.config_map is not None
    (accepted,) = [item for item in observed.resources[0]["status"]["conditions"] if item["type"] == "Accepted"]
    assert (accepted["status"], "Start it with --max-cpu-loras 2 or more" in accepted["message"]) == ("True", True)
