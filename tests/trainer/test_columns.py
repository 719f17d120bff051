"""Columns of other names, columns that are not used, and columns that are asked about."""

import pytest

from finetune_api.finetunejob import Objective
from finetune_trainer.data import rows
from tests.trainer.stored_rows import ANSWER, USER, WRONG_ANSWER, Row, read

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("columns", "row", "expected"),
    [
        ({"prompt": "q", "completion": "a"}, {"q": "x", "a": "y"}, {"prompt": "x", "completion": "y"}),
        ({"messages": "chat"}, {"chat": [USER, ANSWER]}, {"messages": [USER, ANSWER]}),
        (
            {"instruction": "task", "input": "about", "output": "done"},
            {"task": "x", "about": "y", "done": "z"},
            {"instruction": "x", "input": "y", "output": "z"},
        ),
        ({"text": "content"}, {"content": "x"}, {"text": "x"}),
    ],
)
def test_columns_of_other_names(columns: Row, row: Row, expected: Row) -> None:
    assert read([row], columns=columns)[0] == [expected]


@pytest.mark.parametrize(
    ("objective", "row", "question"),
    [
        ("dpo", {"request": "Hi", "chosen": "a", "rejected": "b"}, "which column is the prompt?"),
        ("dpo", {"conversations": [USER], "chosen": [ANSWER], "rejected": [WRONG_ANSWER]}, "no prompt, but a column"),
        ("sft", {"text": "a", "weight": 0.5}, "has weight 0.5, but row weights are not supported"),
        ("sft", {"messages": [USER, ANSWER], "images": ["x.png"]}, "has a column 'images', but only text is learned"),
        ("sft", {"prompt": "a", "completion": "b", "history": [["c", "d"]]}, "format promptCompletion has no place"),
        ("sft", {"text": "a", "system": "Be kind."}, "format text has no place"),
    ],
)
def test_a_column_that_usually_matters_is_asked_about_until_it_is_ignored(
    objective: Objective, row: Row, question: str
) -> None:
    good, findings, _ = read([row], objective)
    assert good == []
    assert question in findings.shown[0]
    left_out = [name for name in row if name not in ("text", "messages", "prompt", "completion", "chosen", "rejected")]
    good, findings, _ = read([row], objective, columns={"ignored": left_out})
    assert findings.shown == []
    assert len(good) == 1
    assert list(findings.unused) == left_out


def test_columns_that_say_nothing_are_reported_only() -> None:
    rows_read: list[Row] = [
        {"text": "a", "weight": 1, "images": [], "system": "", "id": 7},
        {"text": "b", "source": "web"},
    ]
    _, findings, layout = read(rows_read)
    assert findings.shown == []
    described = rows.describe_layout(layout, findings.used, findings.unused)
    assert described == "text (columns text; not used: weight, images, system, id, source)"


def test_the_first_column_of_usual_names_is_taken() -> None:
    share = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    good, _, layout = read([{"conversations": share, "id": "x"}])
    assert layout == "messages"
    assert good[0]["messages"][1] == {"role": "assistant", "content": "Hello"}
    good, findings, layout = read([{"conversation": "Hi. Hello.", "text": "a"}])
    assert (layout, good, list(findings.unused)) == ("text", [{"text": "a"}], ["conversation"])
    pair = {"system": "Be kind.", "question": "Hi", "chosen": "Hello", "rejected": "No"}
    good, findings, _ = read([pair], "dpo")
    assert [turn["role"] for turn in good[0]["prompt"]] == ["system", "user"]
    assert list(findings.unused) == []
