"""spec.dataset.template makes a text, or a prompt and a completion, of a row."""

from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_trainer.runtime.failures import Failure
from tests.trainer.stored_rows import read

pytestmark = pytest.mark.unit


def test_a_template_makes_a_text_or_a_pair_of_a_row() -> None:
    row = {"question": "Why?", "answers": ["Because.", "So."], "meta": {"topic": "things"}}
    text = "{{ meta.topic | upper }}: {{ question }}\n{% for one in answers %}- {{ one }}\n{% endfor %}"
    assert read([row], template={"text": text})[0] == [{"text": "THINGS: Why?\n- Because.\n- So.\n"}]
    pair = {"prompt": "{{ question }}\n", "completion": "{{ answers[0] }}"}
    assert read([row], template=pair)[0] == [{"prompt": "Why?\n", "completion": "Because."}]
    assert read([row | {"good": True}], "kto", template=pair, columns={"label": "good"})[0] == [
        {"prompt": "Why?\n", "completion": "Because.", "label": True}
    ]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ answer }}",
            "rows.jsonl line 1: template.text uses a value that the row lacks: 'answer' is undefined; found columns: "
            "question",
        ),
        ("{{ question.length }}", "'str object' has no attribute 'length'"),
        ("{{ question / 2 }}", "template.text fails: TypeError"),
        ("{{ ''.__class__.__mro__ }}", "template.text does something that templates may not do"),
        ("{{ question.__init__.__globals__ }}", "template.text does something that templates may not do"),
    ],
)
def test_a_template_that_fails_names_row_and_variable(template: str, message: str) -> None:
    good, findings, _ = read([{"question": "Why?"}], template={"text": template})
    assert good == []
    assert message in findings.shown[0]


@pytest.mark.parametrize("line", ["{% for %}", "{{ ['a', 'b'] | random }}"], ids=["broken", "other texts each time"])
def test_an_invalid_template_is_an_error_of_the_spec(line: str) -> None:
    with pytest.raises(Failure) as caught:
        read([{"a": "b"}], template={"text": f"one line\n{line}"})
    assert (caught.value.reason, caught.value.field) == (Reason.SPEC_INVALID, "spec.dataset.template.text")
    assert "(line 2)" in caught.value.message


@pytest.mark.parametrize("null", [None, float("nan")])
def test_a_null_is_not_written_as_a_word(null: Any) -> None:
    good, findings, _ = read([{"q": "Why?", "hint": null}], template={"text": "{{ q }} {{ hint }}"})
    assert good == []
    assert (
        "template.text would write a null as text; columns with null: hint. Write {{ column or '' }}"
        in (findings.shown[0])
    )
    optional = {"text": "{% if hint %}{{ hint }}{% endif %}{{ q }}{{ meta.hint or '' }}"}
    assert read([{"q": "Why?", "hint": None, "meta": {"hint": None}}], template=optional)[0] == [{"text": "Why?"}]
