"""The format of rows is detected, each row is checked, and its columns get the usual names."""

import json
import re
from pathlib import Path

import pytest
import yaml

from finetune_api.finetunejob import FineTuneJobSpec, Objective
from finetune_api.reasons import Reason
from finetune_trainer.data import rows
from finetune_trainer.data.files import read_rows
from finetune_trainer.runtime.failures import Failure
from tests.trainer.stored_rows import ANSWER, USER, WRONG_ANSWER, Row, file, read

pytestmark = pytest.mark.unit
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": "{}"}}]}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}],
}
GOOD: dict[str, tuple[Objective, Row, str, Row]] = {
    "text": ("sft", {"text": "a"}, "text", {"text": "a"}),
    "prompt and completion": (
        "sft",
        {"prompt": "a", "completion": "b", "id": 7},
        "promptCompletion",
        {"prompt": "a", "completion": "b"},
    ),
    "prompt and completion as chats": (
        "sft",
        {"prompt": [USER], "completion": [ANSWER]},
        "promptCompletion",
        {"prompt": [USER], "completion": [ANSWER]},
    ),
    "messages": ("sft", {"messages": [USER, ANSWER]}, "messages", {"messages": [USER, ANSWER]}),
    "messages before other columns": (
        "sft",
        {"prompt": "a", "completion": "b", "messages": [USER, ANSWER]},
        "messages",
        {"messages": [USER, ANSWER]},
    ),
    "messages as JSON": ("sft", {"messages": json.dumps([USER, ANSWER])}, "messages", {"messages": [USER, ANSWER]}),
    "messages with tools": (
        "sft",
        {"messages": [USER, CALL], "tools": TOOLS},
        "messages",
        {"messages": [USER, CALLED], "tools": TOOLS},
    ),
    "tools as JSON": (
        "sft",
        {"messages": [USER, ANSWER], "tools": json.dumps(TOOLS)},
        "messages",
        {"messages": [USER, ANSWER], "tools": TOOLS},
    ),
    "nulls of parquet": (
        "sft",
        {"messages": [USER, ANSWER | {"tool_calls": None}], "tools": None},
        "messages",
        {"messages": [USER, ANSWER]},
    ),
    "Alpaca": (
        "sft",
        {"instruction": "a", "input": "b", "output": "c"},
        "instruction",
        {"instruction": "a", "input": "b", "output": "c"},
    ),
    "Alpaca without input": (
        "sft",
        {"instruction": "a", "output": "c"},
        "instruction",
        {"instruction": "a", "input": "", "output": "c"},
    ),
    "Dolly": (
        "sft",
        {"instruction": "a", "context": "b", "response": "c", "category": "d"},
        "instruction",
        {"instruction": "a", "input": "b", "output": "c"},
    ),
    "preference": (
        "dpo",
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        "preference",
        {"prompt": "a", "chosen": "b", "rejected": "c"},
    ),
    "preference without a prompt": (
        "orpo",
        {"chosen": "Is it so? Yes.", "rejected": "Is it so? Yellow."},
        "preference",
        {"prompt": "Is it so? ", "chosen": "Yes.", "rejected": "Yellow."},
    ),
    "preference as chats": (
        "dpo",
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG_ANSWER]},
        "preference",
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG_ANSWER]},
    ),
    "preference of whole chats": (
        "dpo",
        {"chosen": [USER, ANSWER], "rejected": [USER, WRONG_ANSWER]},
        "preference",
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG_ANSWER]},
    ),
    "preference of whole chats beside their prompt": (
        "dpo",
        {"prompt": USER["content"], "chosen": [USER, ANSWER], "rejected": [USER, WRONG_ANSWER]},
        "preference",
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG_ANSWER]},
    ),
    "preference of answers as chats": (
        "dpo",
        {"prompt": USER["content"], "chosen": [ANSWER], "rejected": [WRONG_ANSWER]},
        "preference",
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG_ANSWER]},
    ),
    "label": (
        "kto",
        {"prompt": "a", "completion": "b", "label": False},
        "promptCompletion",
        {"prompt": "a", "completion": "b", "label": False},
    ),
    "label of a table": (
        "kto",
        {"prompt": "a", "completion": "b", "label": "TRUE"},
        "promptCompletion",
        {"prompt": "a", "completion": "b", "label": True},
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_the_format_is_detected_from_the_first_row_and_rows_get_the_usual_names(name: str) -> None:
    objective, row, layout, expected = GOOD[name]
    good, findings, taken_as = read([row], objective)
    assert (taken_as, findings.shown) == (layout, [])
    assert good == [expected]
    assert read([row], objective, format=layout)[0] == [expected], "said instead of told"


BAD: dict[str, tuple[Objective, str, Row, str]] = {
    "no column": (
        "sft",
        "promptCompletion",
        {"prompt": "a", "answer": "b"},
        "has no column 'completion'; found columns: prompt, answer",
    ),
    "no text": ("sft", "text", {"text": None}, "column 'text' must be text, found null"),
    "no list": ("sft", "messages", {"messages": "hi"}, "column 'messages' must be a list of messages, found a text"),
    "no role": (
        "sft",
        "messages",
        {"messages": [{"content": "hi"}]},
        "message 1 in column 'messages' must have the texts role and content",
    ),
    "no content": (
        "sft",
        "messages",
        {"messages": [USER, {"role": "assistant"}]},
        "message 2 in column 'messages' must have the texts role and content",
    ),
    "no answer": (
        "sft",
        "messages",
        {"messages": [USER]},
        "has no message of the role assistant to learn from; found roles: user",
    ),
    "tools that are none": (
        "sft",
        "messages",
        {"messages": [USER, ANSWER], "tools": {"a": 1}},
        "tool 1 in column 'tools' must have a name",
    ),
    "no instruction": ("sft", "instruction", {"output": "a"}, "has no column 'instruction'; found columns: output"),
    "an input that is none": (
        "sft",
        "instruction",
        {"instruction": "a", "input": 1, "output": "b"},
        "column 'input' must be text, found a number",
    ),
    "no rejected": (
        "dpo",
        "preference",
        {"prompt": "a", "chosen": "b"},
        "has no column 'rejected'; found columns: prompt, chosen",
    ),
    "a text and a chat": (
        "dpo",
        "preference",
        {"prompt": "a", "chosen": [USER, ANSWER], "rejected": "c"},
        "column 'rejected' must be a list of messages",
    ),
    "an answer of the user": (
        "dpo",
        "preference",
        {"chosen": [USER, ANSWER], "rejected": [USER, USER]},
        "has a message of the role user, which would be learned",
    ),
    "no label": (
        "kto",
        "promptCompletion",
        {"prompt": "a", "completion": "b"},
        "has no column 'label'; found columns: prompt, completion",
    ),
    "a label that is none": (
        "kto",
        "promptCompletion",
        {"prompt": "a", "completion": "b", "label": 3},
        "column 'label' must be true or false, found 3",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_row_is_reported(name: str) -> None:
    objective, layout, row, message = BAD[name]
    good, findings, _ = read([row], objective, format=layout)
    assert good == []
    assert findings.shown[0].startswith("rows.jsonl line 1: ")
    assert message in findings.shown[0]


def test_five_bad_rows_are_shown_and_all_are_counted() -> None:
    _, findings, layout = read([{"text": "a"}, *({"text": number} for number in range(7)), {"text": " "}])
    with pytest.raises(Failure) as caught:
        rows.refuse_bad_rows(findings, "text", "s3://data/rows.jsonl")
    assert (findings.rows, findings.bad, findings.empty, layout) == (9, 7, 1, "text")
    assert caught.value.message.startswith(
        "7 of 9 rows of s3://data/rows.jsonl cannot be used: rows.jsonl line 2: column 'text'"
    )
    assert "line 6: " in caught.value.message
    assert "line 7: " not in caught.value.message
    assert "; 2 more." in caught.value.message


@pytest.mark.parametrize(
    ("objective", "row"),
    [
        ("sft", {"text": " \n"}),
        ("sft", {"prompt": "a", "completion": " "}),
        ("sft", {"messages": [USER, {"role": "assistant", "content": ""}]}),
        ("sft", {"instruction": "a", "output": ""}),
        ("dpo", {"prompt": "a", "chosen": "b", "rejected": "b"}),
        ("dpo", {"prompt": "a", "chosen": "b", "rejected": " "}),
    ],
)
def test_rows_without_anything_to_learn_are_counted(objective: Objective, row: Row) -> None:
    good, findings, _ = read([row], objective)
    assert (good, findings.bad, findings.empty) == ([], 0, 1)


@pytest.mark.parametrize(
    ("objective", "row", "message"),
    [
        ("dpo", {"text": "a"}, "objective dpo learns from a better and a worse answer"),
        ("orpo", {"prompt": "a", "completion": "b"}, "objective orpo learns from a better and a worse answer"),
        ("reward", {"messages": [USER, ANSWER]}, "objective reward learns from a better and a worse answer"),
        ("kto", {"text": "a"}, "objective kto learns from prompts, completions and a label"),
        ("sft", {"chosen": "a", "rejected": "b"}, "set spec.objective to dpo, orpo or reward"),
        (
            "sft",
            {"question": "a"},
            "rows.jsonl line 1 of s3://data/rows.jsonl has the columns question; expected messages",
        ),
    ],
)
def test_data_that_the_objective_cannot_use(objective: Objective, row: Row, message: str) -> None:
    with pytest.raises(Failure) as caught:
        read([row], objective)
    assert caught.value.reason is Reason.DATASET_INVALID
    assert message in caught.value.message


PAGE = re.findall(r"```(jsonl|yaml)\n(.*?)```", Path("docs/datasets.md").read_text(), re.DOTALL)


def test_the_examples_of_the_page_are_true() -> None:
    checked, content = 0, ""
    for kind, text in PAGE:
        if kind == "jsonl":
            content = text
            continue
        spec = FineTuneJobSpec.model_validate(
            {"model": {"uri": "hf://acme/model"}, "output": {"s3": {"bucket": "adapters"}}} | yaml.safe_load(text)
        )
        if not content:
            continue
        data_file, findings = file(content.encode(), "rows.jsonl"), rows.Findings()
        reader = rows.make_reader([data_file], spec.dataset, spec.objective, spec.dataset.uri)
        assert list(reader.read(read_rows(data_file), findings)), text
        assert findings.shown == [], text
        detected = rows.make_reader(
            [data_file], spec.dataset.model_copy(update={"format": "auto"}), spec.objective, spec.dataset.uri
        )
        assert detected.layout == reader.layout, "auto takes it so too"
        checked, content = checked + 1, ""
    assert checked == 7
