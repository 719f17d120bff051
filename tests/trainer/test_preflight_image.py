"""The preflight in its image, without torch: what people bring passes or is refused before a GPU is asked for."""

import importlib.util
import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset  # type: ignore[import-untyped]

from finetune_api.messages import PreflightResult
from finetune_api.reasons import Reason
from tools.testing.preflight_image import run_in_image
from tools.testing.s3_server import S3Server
from tools.testing.trainer_jobs import CHATS, Workbench, jsonl

USER, ANSWER = {"role": "user", "content": "What follows?"}, {"role": "assistant", "content": "The next one."}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"type": "function", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}}
ALPACA = [{"instruction": f"Repeat {number}", "output": f"word {number}"} for number in range(12)]


@dataclass(frozen=True)
class Case:
    """A dataset and a model, and what the preflight finds: no problem, or a reason and words of its message."""

    data: list[dict[str, Any]] | str | bytes
    reason: Reason | None = None
    message: str = ""
    key: str = "train.jsonl"
    uri: str | None = None
    template: str | None = None
    objective: str = "sft"
    change: Callable[[Path], None] | None = None
    warning: str = ""


def chats(*messages: Any, **columns: Any) -> list[dict[str, Any]]:
    """Return rows with this chat."""
    return [{"messages": list(messages), **columns}] * 12


def break_tokenizer(model: Path) -> None:
    content = json.loads((model / "tokenizer.json").read_text())
    content["model"]["merges"] = [{"a": 1}]
    (model / "tokenizer.json").write_text(json.dumps(content))


def add_token(model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(model)


def drop_thinking(model: Path) -> None:
    (model / "chat_template.jinja").write_text(
        "{% for message in messages %}"
        "<|{{ message['role'] }}|>{{ message['content'].split('</think>')[-1] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )


def drop_system(model: Path) -> None:
    (model / "chat_template.jinja").write_text(
        "{% for message in messages if message['role'] != 'system' %}"
        "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )


def hide_contents(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{% for message in messages %}{{ message['role'] }}{% endfor %}")


CASES = {
    "ShareGPT": Case([{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}] * 12),
    "parts of contents": Case(
        chats({"role": "user", "content": [{"type": "text", "text": "Hi"}]}, ANSWER), template="qwen2_5"
    ),
    "arguments as JSON": Case(
        chats(USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}), template="qwen2_5"
    ),
    "arguments as JSON, read as an object": Case(
        chats(USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}), template="qwen3_5_think"
    ),
    "a template that refuses the system prompt": Case(
        [{"messages": [USER, ANSWER]}] * 2 + [{"messages": [SYSTEM, USER, ANSWER]}] * 10,
        Reason.DATASET_INVALID,
        "10 of 12 rows of configmap://data/train.jsonl cannot be used: train.jsonl line 3: "
        "the model's chat template refuses it (System role not supported)",
        template="gemma",
    ),
    "several turns of Qwen3": Case(chats(SYSTEM, USER, ANSWER, USER, ANSWER), template="qwen3"),
    "reasoning that the template leaves out": Case(
        chats(USER, ANSWER | {"reasoning_content": "One follows zero."}),
        template="qwen2_5",
        warning="or thinking, or <think> in content) of 12 chats",
    ),
    "reasoning in a content that the template leaves out": Case(
        chats(USER, {"role": "assistant", "content": "<think>One follows zero.</think>The next one."}),
        change=drop_thinking,
        warning="leaves out the reasoning",
    ),
    "a system prompt that the template leaves out": Case(
        chats(SYSTEM, USER, ANSWER), change=drop_system, warning="leaves out messages or tools of 12 chats"
    ),
    "tools that the template leaves out": Case(
        chats(USER, ANSWER, tools=[{"type": "function", "function": {"name": "find_tide", "parameters": {}}}]),
        template="gemma",
        warning="leaves out messages or tools of 12 chats",
    ),
    "DeepSeek-R1": Case(chats(USER, ANSWER), template="deepseek_r1_distill"),
    "system and history": Case(
        [{"instruction": "And?", "output": "Sum", "system": "In French.", "history": [["One?", "1."]]}] * 12,
        template="qwen2_5",
        warning="instruction (columns instruction, output, system, history)",
    ),
    "a question beside pairs": Case(
        [{"question": "What?", "chosen": "It is 4.", "rejected": "No idea."}] * 12, objective="dpo", template="qwen2_5"
    ),
    "a list on each line": Case("".join(f"[{json.dumps(row)}]\n" for row in ALPACA)),
    "UTF-16": Case(jsonl(ALPACA).encode("utf-16"), Reason.DATASET_INVALID, "save it as UTF-8"),
    "NaN": Case("".join(f'{{"instruction": "Repeat {n}", "input": NaN, "output": "{n}"}}\n' for n in range(12))),
    "Python's notation": Case(
        "messages\n" + f'"{[USER, ANSWER]}"\n' * 12, Reason.DATASET_INVALID, "Python's notation", key="train.csv"
    ),
    "deep nesting": Case(
        jsonl(ALPACA) + '{"instruction": "x", "output": "y", "meta": ' + "[" * 200_000 + "]" * 200_000 + "}\n",
        Reason.DATASET_INVALID,
        "line 13",
    ),
    "a saved dataset": Case(
        [],
        uri="pvc://models/saved",
        change=lambda model: Dataset.from_list(ALPACA).save_to_disk(model.parent / "saved"),
    ),
    "a huge row": Case(jsonl([{"text": "short"}, {"text": "many words " * 200_000}] * 6)),
    "two tokens at the start": Case([{"text": "<|user|>What?<|end|>"}] * 12),
    "a token without an embedding": Case(
        [{"prompt": "a", "completion": "<tool>b"}],
        Reason.MODEL_UNSUPPORTED,
        "embeddings for",
        change=add_token,
    ),
    "a tokenizer that the library cannot read": Case(
        CHATS, Reason.MODEL_UNSUPPORTED, "cannot be loaded from tokenizer.json", change=break_tokenizer
    ),
    "contents that the template does not write": Case(
        CHATS,
        Reason.DATASET_INVALID,
        "it does not write the contents of messages",
        change=hide_contents,
    ),
}  # fmt: skip
PROGRAM = """
import json, sys
from pathlib import Path
from finetune_api.finetunejob import FineTuneJob
from finetune_trainer.preflight import check
from finetune_trainer.runtime.settings import Settings
for line in sys.stdin:
    given = json.loads(line)
    settings = Settings(FineTuneJob.of(given["job"]), mounts=Path(given["mounts"]), scratch=Path(given["scratch"]))
    print(check(settings, 1).model_dump_json())
"""


LONGEST_ROW = 512
"""Tokens of the longest row, with its tools and its system text, in the tiny model's vocabulary of 329."""


@pytest.fixture(scope="module")
def results(
    s3_server: S3Server, base_model: Path, preflight_image: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, PreflightResult]]:
    """Yield the results of all cases, from one process."""
    trl = importlib.util.find_spec("trl")
    assert trl and trl.submodule_search_locations
    templates = Path(trl.submodule_search_locations[0]) / "chat_templates"
    lines = []
    for number, case in enumerate(CASES.values()):
        directory = tmp_path_factory.mktemp(f"case-{number}")
        model = Path(shutil.copytree(base_model, directory / "model"))
        if case.template:
            shutil.copyfile(templates / f"{case.template}.jinja", model / "chat_template.jinja")
        if case.change:
            case.change(model)
        bench = Workbench(s3_server, s3_server.create_bucket(f"test-{uuid.uuid4().hex[:12]}"), model, directory)
        uri = bench.dataset(jsonl(case.data) if isinstance(case.data, list) else case.data, case.key)
        training = bench.job()["spec"]["training"] | {"maxLength": LONGEST_ROW}
        job = bench.job(dataset={"uri": case.uri or uri}, objective=case.objective, training=training)
        lines.append({"job": job, "mounts": str(bench.mounts), "scratch": str(directory / "scratch")})
    completed = run_in_image(preflight_image, "-c", PROGRAM, text=jsonl(lines))
    assert completed.returncode == 0, completed.stderr
    results = [
        PreflightResult.model_validate_json(line) for line in completed.stdout.splitlines() if line.startswith("{")
    ]
    yield dict(zip(CASES, results, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_what_people_bring(name: str, results: dict[str, PreflightResult]) -> None:
    case, result = CASES[name], results[name]
    assert [problem.reason for problem in result.problems] == ([case.reason] if case.reason else []), result.problems
    assert case.message in "".join(problem.message for problem in result.problems)
    assert case.warning in " ".join(result.warnings)
