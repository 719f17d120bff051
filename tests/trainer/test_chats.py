"""Chats of any origin are converted to one form, and parts that do not fit into it are refused by name."""

import json
from typing import Any

import pytest

from finetune_api.dataset import Columns
from finetune_trainer.data import alpaca
from finetune_trainer.data.answers import read_preference, read_prompt_completion
from finetune_trainer.data.chats import read_chat
from finetune_trainer.data.columns import Layout, find_columns
from finetune_trainer.data.row_formats import read_instruction, read_messages
from finetune_trainer.data.values import RowError

pytestmark = pytest.mark.unit

Row = dict[str, Any]
USER, ANSWER, WORSE = (
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "assistant", "content": "No"},
)
CLOCK = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}


def turn(**keys: Any) -> Row:
    return {"role": "assistant", "content": "", **keys}


NORMAL: dict[str, tuple[Any, list[Row]]] = {
    "ShareGPT": ([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], [USER, ANSWER]),
    "ShareGPT's other roles": (
        [{"from": "system", "value": "Be kind."}, {"from": "User", "value": "Hi"}, {"from": "bing", "value": "Hello"}],
        [{"role": "system", "content": "Be kind."}, USER, ANSWER],
    ),
    "ShareGPT's calls": (
        [
            {"from": "function_call", "value": json.dumps(CLOCK["function"])},
            {"from": "observation", "value": "noon"},
        ],
        [turn(tool_calls=[CLOCK]), {"role": "tool", "content": "noon"}],
    ),
    "aliases under OpenAI's keys": (
        [{"role": "human", "content": "Hi"}, {"role": "gpt", "content": "Hello"}],
        [USER, ANSWER],
    ),
    "content parts": (
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "Hi", "image_url": None}, {"type": "text", "text": "you"}],
            }
        ],
        [{"role": "user", "content": "Hi\nyou"}],
    ),
    "arguments as JSON": (
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}}
                ],
            }
        ],
        [turn(tool_calls=[{**CLOCK, "id": "c1"}])],
    ),
    "calls without a wrapper": ([{"role": "assistant", "tool_calls": [CLOCK["function"]]}], [turn(tool_calls=[CLOCK])]),
    "calls as JSON": ([{"role": "assistant", "tool_calls": json.dumps([CLOCK])}], [turn(tool_calls=[CLOCK])]),
    "a call without arguments": (
        [{"role": "assistant", "tool_calls": [{"function": {"name": "clock", "arguments": ""}}]}],
        [turn(tool_calls=[{"type": "function", "function": {"name": "clock", "arguments": {}}}])],
    ),
    "legacy function_call": (
        [
            {"role": "assistant", "content": None, "function_call": {"name": "clock", "arguments": '{"zone": "UTC"}'}},
            {"role": "function", "name": "clock", "content": "noon"},
        ],
        [turn(tool_calls=[CLOCK]), {"role": "tool", "content": "noon", "name": "clock"}],
    ),
    "nulls of parquet at any depth": (
        [
            {"role": "user", "content": "Hi", "name": None, "tool_calls": None, "weight": None},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": None,
                        "type": "function",
                        "function": {"name": "clock", "arguments": {"zone": "UTC", "city": None}},
                    }
                ],
            },
        ],
        [USER, turn(tool_calls=[CLOCK])],
    ),
    "NaN of pandas": ([{"role": "user", "content": "Hi", "name": float("nan")}], [USER]),
    "a Sequence of the datasets library": ({"from": ["human", "gpt"], "value": ["Hi", "Hello"]}, [USER, ANSWER]),
    "one message": (ANSWER, [ANSWER]),
    "JSON": (json.dumps([USER, ANSWER]), [USER, ANSWER]),
    "thinking is kept": ([{**ANSWER, "reasoning_content": "Greet."}], [{**ANSWER, "reasoning_content": "Greet."}]),
    "OpenAI's weight": (
        [USER, {**WORSE, "weight": 0}, {**ANSWER, "weight": 1}],
        [USER, {**WORSE, "train": False}, {**ANSWER, "train": True}],
    ),
    "weights of a table": (
        [{**WORSE, "weight": "0"}, {**ANSWER, "weight": 1.0}],
        [{**WORSE, "train": False}, {**ANSWER, "train": True}],
    ),
    "Axolotl's and ms-swift's flags": (
        [{**USER, "train": False}, {**WORSE, "loss": False}],
        [USER, {**WORSE, "train": False}],
    ),
}


@pytest.mark.parametrize("name", NORMAL)
def test_the_normal_form_of_a_chat(name: str) -> None:
    stored, expected = NORMAL[name]
    assert read_chat(stored, "column 'messages'") == expected


REFUSED: dict[str, tuple[Any, str]] = {
    "an image": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        "message 1 in column 'messages' has a part of the type 'image_url', which is not supported",
    ),
    "an unknown role of ShareGPT": (
        [{"from": "narrator", "value": "Once"}],
        "is from 'narrator', an unknown role; known are: user, human",
    ),
    "half a weight": ([{**ANSWER, "weight": 0.5}], "has weight 0.5: write 1 to learn the turn"),
    "flags that contradict": (
        [{**ANSWER, "weight": 0, "train": True}],
        "weight and train, which contradict one another",
    ),
    "a learned user": ([{**USER, "weight": 1}], "is of the role user and marked as learned (weight)"),
    "a flag of other trainers": (
        [{**ANSWER, "train_detail": [{"begin_offset": 0}]}],
        "has the key 'train_detail', which the trainer does not support",
    ),
    "arguments that are no object": (
        [{"role": "assistant", "tool_calls": [{"function": {"name": "clock", "arguments": "[1]"}}]}],
        "tool call 1 (clock) of message 1 in column 'messages' must be an object or its JSON",
    ),
    "arguments that are no JSON": (
        [{"role": "assistant", "tool_calls": [{"function": {"name": "clock", "arguments": "{zone"}}]}],
        "tool call 1 (clock) of message 1 in column 'messages' is not JSON",
    ),
    "a call without a name": (
        [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}],
        "must have the text name",
    ),
    "Python's notation": ("[{'role': 'user', 'content': 'Hi'}]", "column 'messages' holds Python's notation, not JSON"),
    "numpy's notation": ("[array([{'role': 'user'}])]", "Write the value with json.dumps(value)"),
    "broken JSON": ('[{"role": "user"', "column 'messages' is not JSON"),
    "JSON that is nested too deep": ("[" * 100_000 + "]" * 100_000, "nested more than 100 deep"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_place_in_a_chat_is_named(name: str) -> None:
    stored, message = REFUSED[name]
    chat = read_chat(stored, "column 'messages'")
    assert isinstance(chat, RowError)
    assert message in chat


def names(row: Row, layout: Layout) -> dict[str, str]:
    return find_columns(row, Columns(), layout, labelled=False)


def test_a_system_prompt_and_functions_beside_a_chat_become_part_of_it() -> None:
    row = {"conversations": [USER, ANSWER], "system": "Be kind.", "functions": '[{"name": "clock"}]'}
    assert read_messages(row, names(row, "messages")) == {
        "messages": [{"role": "system", "content": "Be kind."}, USER, ANSWER],
        "tools": [{"type": "function", "function": {"name": "clock"}}],
    }
    agreeing = {"messages": [{"role": "system", "content": "Be kind."}, ANSWER], "system": "Be kind."}
    assert read_messages(agreeing, names(agreeing, "messages")) == {"messages": agreeing["messages"]}
    contradicting = agreeing | {"system": "Be rude."}
    assert "has another system prompt" in str(read_messages(contradicting, names(contradicting, "messages")))


def test_a_chat_of_which_no_turn_is_learned_is_empty() -> None:
    row = {"messages": [USER, {**ANSWER, "weight": 0}]}
    assert read_messages(row, names(row, "messages")) is None


def test_history_and_system_of_alpaca_are_turns_or_part_of_the_prompt() -> None:
    row = {
        "instruction": "And?",
        "input": float("nan"),
        "output": "Sum",
        "system": "In French.",
        "history": [["First?", "One."]],
    }
    fields = read_instruction(row, names(row, "instruction"))
    assert fields == {**row, "input": ""}
    assert alpaca.to_messages(fields) == [
        {"role": "system", "content": "In French."},
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Sum"},
    ]
    assert alpaca.to_prompt(fields) == (
        "In French.\n\n### Instruction:\nFirst?\n\n### Response:\nOne.\n\n### Instruction:\nAnd?\n\n### Response:\n"
    )
    wrong = row | {"history": ["First?"]}
    assert "must be a list of pairs of a question and its answer" in str(
        read_instruction(wrong, names(wrong, "instruction"))
    )


def test_the_prompt_of_alpaca_is_that_of_stanford() -> None:
    row = {"instruction": "Name {it}.", "input": "Blue", "output": "x"}
    assert alpaca.to_prompt(row).endswith(
        "appropriately completes the request.\n\n### Instruction:\nName {it}.\n\n### Input:\nBlue\n\n### Response:\n"
    )


PAIRS: dict[str, tuple[Row, Row]] = {
    "question": (
        {"question": "Hi", "chosen": "Hello", "rejected": "No"},
        {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
    ),
    "a system prompt": (
        {"system": "Be kind.", "question": "Hi", "chosen": "Hello", "rejected": "No"},
        {"prompt": [{"role": "system", "content": "Be kind."}, USER], "chosen": [ANSWER], "rejected": [WORSE]},
    ),
    "an empty system prompt": (
        {"system": "", "query": "Hi", "chosen": "Hello", "rejected": "No"},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]},
    ),
    "whole chats beside their prompt": (
        {"prompt": [USER], "chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]},
    ),
    "one message each": (
        {
            "prompt": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello"},
            "rejected": {"from": "gpt", "value": "No"},
        },
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]},
    ),
    "answers that are JSON themselves": (
        {"prompt": "List", "chosen": "[1, 2]", "rejected": "{'a': 1}"},
        {"prompt": "List", "chosen": "[1, 2]", "rejected": "{'a': 1}"},
    ),
    "tools": (
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE], "tools": [{"name": "f"}]},
        {
            "prompt": [USER],
            "chosen": [ANSWER],
            "rejected": [WORSE],
            "tools": [{"type": "function", "function": {"name": "f"}}],
        },
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_better_and_a_worse_answer(name: str) -> None:
    row, expected = PAIRS[name]
    assert read_preference(row, names(row, "preference"), as_chat="system" in row) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "a", "completion": "b", "tools": [{"name": "f"}]},
            "has a column 'tools', which only chats can have",
        ),
        ({"prompt": [USER], "completion": [{**WORSE, "weight": 0}, ANSWER]}, "which only format messages can do"),
        ({"prompt": "a", "completion": "[{'role': 'assistant', 'content': 'b'}]"}, "holds Python's notation"),
    ],
)
def test_completions_that_cannot_be_used(row: Row, message: str) -> None:
    assert message in str(read_prompt_completion(row, names(row, "promptCompletion"), labelled=False, as_chat=False))


def test_tools_and_calls_of_parquet_have_no_keys_of_other_rows() -> None:
    zone = {"type": "object", "properties": {"zone": {"type": "string"}, "city": None}, "required": None}
    chat = [USER, ANSWER | {"function_call": {"name": None, "arguments": None}, "tool_calls": None}]
    row = {"messages": chat, "tools": [{"type": "function", "function": {"name": "clock", "parameters": zone}}]}
    read = read_messages(row, find_columns(row, Columns(), "messages"))
    assert isinstance(read, dict)
    assert read["messages"] == [USER, ANSWER]
    assert read["tools"][0]["function"]["parameters"] == {
        "type": "object",
        "properties": {"zone": {"type": "string"}},
    }


@pytest.mark.parametrize("prompt", [[USER], json.dumps([USER])])
def test_texts_that_answer_a_chat_are_turns_of_the_assistant(prompt: Any) -> None:
    row = {"prompt": prompt, "completion": "Hello"}
    names = find_columns(row, Columns(), "promptCompletion")
    assert read_prompt_completion(row, names, labelled=False, as_chat=False) == {
        "prompt": [USER],
        "completion": [ANSWER],
    }
    pair = {"prompt": prompt, "chosen": "Hello", "rejected": "No"}
    names = find_columns(pair, Columns(), "preference")
    assert read_preference(pair, names, as_chat=False) == {"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]}
