"""Make token sequences of rows: what is learned of each format, what is counted and kept, and the memory it takes."""

import json
import logging
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.data_counts import LENGTHS
from finetune_api.dataset import DatasetSource
from finetune_api.finetunejob import Objective
from finetune_api.reasons import Reason
from finetune_trainer.data import dataset, token_cache
from finetune_trainer.data.sources import Inputs, LocalData
from finetune_trainer.data.tokenizer import load_tokenizer
from finetune_trainer.data.tokens import IGNORED
from finetune_trainer.runtime.failures import Failure
from tools.testing.trainer_jobs import CHATS, ROWS, jsonl

Row = dict[str, Any]
USER, ANSWER = {"role": "user", "content": "What follows 1?"}, {"role": "assistant", "content": "2."}
WRONG_ANSWER = {"role": "assistant", "content": "7!"}


class DatasetBuilder:
    """Builds datasets with the tiny model's tokenizer."""

    def __init__(self, model: Path, directory: Path) -> None:
        """Load the tokenizer."""
        self.tokenizer, self.model, self.directory = load_tokenizer(model), model, directory

    def prepare(
        self,
        rows: list[Row] | str,
        objective: Objective = "sft",
        held_out: list[Row] | None = None,
        max_length: int = 400,
        **source: Any,
    ) -> dataset.Examples:
        """Return the examples of rows; with one row, that row is held out too."""
        parts = [self._part("train", rows), self._part("held-out", held_out) if held_out else None]
        assert parts[0] is not None
        if held_out:
            source |= {"validation": {"uri": "s3://data/held-out.jsonl"}}
        spec = DatasetSource.model_validate({"uri": "s3://data/train.jsonl"} | source)
        request = token_cache.DatasetRequest(spec, objective, max_length, 1, 200)
        inputs = Inputs(self.model, None, parts[0], parts[1])
        return dataset.prepare_dataset(request, inputs, self.tokenizer, self.directory / "tokens")

    def text(self, ids: list[int]) -> str:
        """Return tokens as text, the special ones too."""
        return str(self.tokenizer.decode([token for token in ids if token != IGNORED]))

    def _part(self, name: str, rows: list[Row] | str) -> LocalData:
        path = self.directory / f"{name}.{'txt' if isinstance(rows, str) else 'jsonl'}"
        path.write_text(rows if isinstance(rows, str) else jsonl(rows))
        return LocalData(f"s3://data/{path.name}", (path,))


@pytest.fixture
def builder(base_model: Path, tmp_path: Path) -> DatasetBuilder:
    """Build datasets in a directory of the test."""
    return DatasetBuilder(base_model, tmp_path)


ALPACA = {"instruction": "Count on.", "input": "1, 2", "output": "3"}


def test_an_instruction_is_asked_as_the_chat_template_has_it(builder: DatasetBuilder) -> None:
    row = dict(builder.prepare([ALPACA]).train[0])
    assert builder.text(row["input_ids"]) == "<|user|>Count on.\n\n1, 2<|end|><|assistant|>3<|end|>"
    assert builder.text(row["labels"]) == "3<|end|>"


@pytest.mark.parametrize("context", ["1, 2", ""])
def test_an_instruction_without_a_chat_template_is_asked_as_alpaca_does(builder: DatasetBuilder, context: str) -> None:
    builder.tokenizer.chat_template = None
    row = dict(builder.prepare([ALPACA | {"input": context}]).train[0])
    text = builder.text(row["input_ids"])
    assert text.startswith("Below is an instruction that describes a task")
    assert ("### Input:\n1, 2\n\n" in text) is bool(context)
    assert text.endswith(
        "### Instruction:\nCount on.\n\n" + ("### Input:\n1, 2\n\n" if context else "") + "### Response:\n3<|end|>"
    )
    assert builder.text(row["labels"]) == "3<|end|>"


def test_a_prompt_and_completion_of_messages_are_one_chat(builder: DatasetBuilder) -> None:
    row = dict(builder.prepare([{"prompt": [USER], "completion": [ANSWER]}]).train[0])
    assert builder.text(row["input_ids"]) == "<|user|>What follows 1?<|end|><|assistant|>2.<|end|>"
    assert builder.text(row["labels"]) == "2.<|end|>"


def test_tools_go_to_the_chat_template_and_calls_are_learned(builder: DatasetBuilder) -> None:
    builder.tokenizer.chat_template = (
        "{% if tools %}<|system|>{{ tools | map(attribute='function.name') | join(',') }}<|end|>{% endif %}"
        "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
        "{% for call in message.tool_calls or [] %}[{{ call.function.name }}]{% endfor %}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": "{}"}}]}
    tools = [{"type": "function", "function": {"name": "add"}}]
    row = dict(builder.prepare([{"messages": [USER, call], "tools": tools}]).train[0])
    assert (
        builder.text(row["input_ids"]) == "<|system|>add<|end|><|user|>What follows 1?<|end|><|assistant|>[add]<|end|>"
    )
    assert builder.text(row["labels"]) == "[add]<|end|>"


@pytest.mark.parametrize("chat", [False, True], ids=["texts", "messages"])
def test_answers_are_kept_apart_from_their_prompt(builder: DatasetBuilder, chat: bool) -> None:
    prompt, better, worse = ([USER], [ANSWER], [WRONG_ANSWER]) if chat else ("What follows 1?\n", "2.", "7!")
    prompt_text = "<|user|>What follows 1?<|end|><|assistant|>" if chat else "What follows 1?\n"
    pair = dict(builder.prepare([{"prompt": prompt, "chosen": better, "rejected": worse}], "dpo").train[0])
    assert {name: builder.text(ids) for name, ids in pair.items()} == {
        "prompt_ids": prompt_text,
        "chosen_ids": "2.<|end|>",
        "rejected_ids": "7!<|end|>",
    }
    labelled = dict(builder.prepare([{"prompt": prompt, "completion": better, "label": False}], "kto").train[0])
    assert labelled.pop("label") is False
    assert {name: builder.text(ids) for name, ids in labelled.items()} == {
        "prompt_ids": prompt_text,
        "completion_ids": "2.<|end|>",
    }


def test_answers_are_cut_to_the_length_and_lost_ones_are_counted(builder: DatasetBuilder) -> None:
    rows = [
        {"prompt": "a", "chosen": "b " * 100, "rejected": "c"},
        {"prompt": "a " * 100, "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": "b " * 100 + "x", "rejected": "b " * 100 + "y"},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
    ]
    examples = builder.prepare(rows, "orpo", max_length=20, held_out=rows[3:])
    counts = examples.counts
    assert (counts.rows, counts.truncated, counts.dropped, counts.sequences) == (4, 3, 2, 2)
    assert max(len(row["prompt_ids"]) + len(row["chosen_ids"]) for row in examples.train) == 20


def test_copies_and_leaks_are_counted(builder: DatasetBuilder) -> None:
    examples = builder.prepare([*ROWS[:10], *ROWS[:3]], held_out=[ROWS[4], ROWS[30]])
    assert (examples.counts.duplicates, examples.counts.leaked, examples.counts.held_out) == (3, 1, 2)
    assert "3 of 13 training rows are copies of other rows" in examples.warnings
    assert any(warning.startswith("1 of 2 held-out rows are also training rows") for warning in examples.warnings)
    clean = builder.prepare(ROWS)
    assert (clean.counts.duplicates, clean.counts.leaked) == (0, 0)


def test_a_template_that_never_ends_is_reported(builder: DatasetBuilder) -> None:
    builder.tokenizer.chat_template = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    examples = builder.prepare(CHATS)
    assert examples.counts.without_end == len(CHATS)
    assert any("do not end with the end-of-text token '<|end|>'" in warning for warning in examples.warnings)
    builder.tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    )
    assert builder.prepare(CHATS).counts.without_end == 0, "a line's end after it is none"


def test_lengths_are_counted_before_anything_is_cut(builder: DatasetBuilder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "finetune_trainer"):
        examples = builder.prepare([{"text": "a" * length} for length in (3, 3, 40, 900)], max_length=32)
    counts = examples.counts
    assert sum(counts.lengths) == counts.rows == 4
    assert counts.lengths[0] == 2
    assert counts.longest > 32
    assert counts.lengths[next(n for n, end in enumerate(LENGTHS) if counts.longest <= end)] == 1
    assert counts.cut_tokens >= counts.longest - 32
    assert any("tokens of a row: ≤16: 2, " in line for line in caplog.messages)
    assert counts.tokens == sum(len(row["input_ids"]) for row in examples.train)


def test_counts_of_tokens_are_those_that_the_loss_sees(builder: DatasetBuilder) -> None:
    examples = builder.prepare(ROWS)
    train = [dict(row) for row in examples.train]
    assert examples.counts.learned_tokens == sum(label != IGNORED for row in train for label in row["labels"])
    pairs = [{"prompt": "a", "chosen": "b", "rejected": f"c{number}"} for number in range(5)]
    pair_examples = builder.prepare(pairs, "dpo")
    learned = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in pair_examples.train)
    assert pair_examples.counts.learned_tokens == learned
    assert pair_examples.counts.tokens == learned + sum(len(row["prompt_ids"]) for row in pair_examples.train)


def test_held_out_rows_that_are_not_used_are_reported(builder: DatasetBuilder) -> None:
    rows = [{"text": f"Row {number}."} for number in range(1000)]
    examples = builder.prepare(rows, validation={"fraction": 0.5})
    assert (examples.counts.held_out, len(examples.held_out)) == (500, 200)
    assert any("of 500 held-out rows the first 200 are used" in warning for warning in examples.warnings)


def test_only_the_first_rows_are_used_where_that_is_asked_for(builder: DatasetBuilder) -> None:
    counts = builder.prepare([{"text": " "}, *({"text": row["prompt"]} for row in ROWS)], maxSamples=10).counts
    assert (counts.sequences + counts.held_out, counts.rows, counts.empty, sum(counts.lengths)) == (10, 11, 1, 10)


def test_sequences_are_made_once(builder: DatasetBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenized: list[int] = []
    write = token_cache.write_table

    def counted(*arguments: Any) -> None:
        tokenized.append(1)
        write(*arguments)

    monkeypatch.setattr(token_cache, "write_table", counted)
    first, again = builder.prepare(ROWS), builder.prepare(ROWS)
    assert len(tokenized) == 1
    assert (again.counts, again.warnings, again.train[:]) == (first.counts, first.warnings, first.train[:])
    builder.prepare(ROWS, max_length=40)
    builder.prepare(ROWS[:-1])
    builder.tokenizer.chat_template += " "
    builder.prepare(ROWS)
    assert len(tokenized) == 4, "other lengths, rows or templates make other sequences"


def test_bad_rows_leave_nothing_behind(builder: DatasetBuilder) -> None:
    rows = [*ROWS, {"prompt": "a"}, *ROWS]
    with pytest.raises(Failure, match=r"1 of 81 rows .* train.jsonl line 41: has no column 'completion'"):
        builder.prepare(rows)
    assert list((builder.directory / "tokens").iterdir()) == []


def test_chats_need_a_chat_template(builder: DatasetBuilder) -> None:
    builder.tokenizer.chat_template = None
    chat_pair = {"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG_ANSWER]}
    cases: list[tuple[Row, Objective]] = [
        (CHATS[0], "sft"),
        (chat_pair, "dpo"),
        ({"prompt": [USER], "completion": [ANSWER]}, "sft"),
    ]
    for row, objective in cases:
        with pytest.raises(Failure) as caught:
            builder.prepare([row], objective)
        assert (caught.value.reason, caught.value.field) == (Reason.MODEL_UNSUPPORTED, "spec.dataset.format")
        assert "no chat template" in caught.value.message


@pytest.mark.parametrize("end", ["<|end|>", None])
def test_a_tokenizer_without_a_padding_token_gets_one(base_model: Path, tmp_path: Path, end: str | None) -> None:
    config = json.loads((base_model / "tokenizer_config.json").read_text())
    for name in base_model.iterdir():
        (tmp_path / name.name).write_bytes(name.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": None, "eos_token": end}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_token == (end or "<|pad|>")
    builder = DatasetBuilder(tmp_path, tmp_path)
    examples = builder.prepare(ROWS)
    assert (builder.text(examples.train[0]["labels"]).endswith("<|end|>")) is bool(end), (
        "the end is learned though it pads too"
    )
    assert any("no end-of-text token" in warning for warning in examples.warnings) is not bool(end)


@pytest.mark.parametrize(
    "make",
    [jsonl, lambda rows: "".join(f"{row['prompt']} {row['completion']}\n" for row in rows)],
    ids=["rows", "plain text"],
)
def test_data_larger_than_what_may_be_held_is_streamed(
    builder: DatasetBuilder, make: Callable[[list[Row]], str]
) -> None:
    rows = [
        {"prompt": f"{number} is a number, ", "completion": "and so are the others that come after it. " * 20}
        for number in range(3000)
    ]
    text = make(rows)
    del rows
    path = builder.directory / ("train.jsonl" if make is jsonl else "train.txt")
    path.write_text(text)
    size = len(text)
    del text
    spec = DatasetSource.model_validate({"uri": f"s3://data/{path.name}"})
    request = token_cache.DatasetRequest(spec, "sft", 512, 1, 200)
    inputs = Inputs(builder.model, None, LocalData(spec.uri, (path,)), None)
    tracemalloc.start()
    try:
        examples = dataset.prepare_dataset(request, inputs, builder.tokenizer, builder.directory / "tokens")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # as Python's lists of numbers the tokens would take 16 bytes each, and the text is there once more
    held_bytes = size + 16 * examples.counts.tokens
    assert held_bytes > 15_000_000
    assert peak < held_bytes / 2
