"""Rows as people bring them: what is learned is what they meant, or the row is refused with a question."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_api.data_counts import Counts
from finetune_api.dataset import DatasetSource
from finetune_api.finetunejob import Objective
from finetune_api.reasons import Reason
from finetune_trainer.data import rows
from finetune_trainer.data.chats import is_chat
from finetune_trainer.data.files import read_rows
from finetune_trainer.data.learned_parts import decode_row
from finetune_trainer.data.tokenizer import load_tokenizer
from finetune_trainer.data.tokens import SAME_ANSWERS, Encoder
from finetune_trainer.runtime.failures import Failure
from tests.trainer.stored_rows import file, read

VICUNA = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% elif m.role == 'assistant' %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% else %}{{ m.content + ' ' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
DROPS_SYSTEM = VICUNA.replace("{% else %}{{ m.content + ' ' }}", "")
"""A template that writes the turns of user and assistant only."""
THINKS_ALONE = VICUNA.replace("m.content + eos", "m.content.split('</think>')[-1] + eos")
"""A template that leaves out what the assistant thinks."""
USER, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
WRONG = {"role": "assistant", "content": "5"}
U1, A1 = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"type": "function", "function": {"name": "search", "arguments": {"city": "Rome"}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}


@dataclass(frozen=True)
class Learned:
    """What is learned of each row of a dataset, and the problems of the rows that are refused."""

    texts: list[str]
    rendered: list[str]
    problems: list[str]
    counts: Counts
    encoder: Encoder


@pytest.fixture
def learn(base_model: Path) -> Any:
    """Return a function that reads rows and returns what is learned of them."""

    def run(
        *items: dict[str, Any], objective: Objective = "sft", template: str | None = VICUNA, **source: Any
    ) -> Learned:
        tokenizer = load_tokenizer(base_model)
        tokenizer.chat_template = template
        content = "".join(json.dumps(item) + "\n" for item in items).encode()
        spec = DatasetSource.model_validate({"uri": "s3://data/rows.jsonl"} | source)
        data_file = file(content, "rows.jsonl")
        reader, findings, counts = rows.make_reader([data_file], spec, objective, spec.uri), rows.Findings(), Counts()
        encoder = Encoder(tokenizer, reader.layout, 256, counts, refuse=findings.refuse)
        texts, rendered = [], []
        for _, encoded in encoder.encode(reader.read(read_rows(data_file), findings)):
            parts = decode_row(tokenizer, encoded)
            texts.append("|".join("".join(part.text for part in shown if part.learned) for shown in parts.values()))
            rendered.append("".join(part.text for shown in parts.values() for part in shown))
        if not findings.bad:
            rows.refuse_bad_rows(findings, reader.layout, spec.uri, reader.columns)
        return Learned(texts, rendered, findings.shown, counts, encoder)

    return run


def test_the_first_word_is_learned_if_its_token_begins_in_the_header(learn: Any) -> None:
    chat = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": "yes it is"}]
    (text,) = learn({"messages": chat}).texts
    assert text.strip() == "yes it is<|end|>"


@pytest.mark.parametrize(
    ("objective", "row"),
    [
        ("sft", {"prompt": [USER], "completion": [CALLING]}),
        ("dpo", {"prompt": [USER], "chosen": [CALLING], "rejected": [WRONG]}),
        ("sft", {"messages": [USER, CALLING | {"content": "I will search for it."}]}),
    ],
)
def test_a_tool_call_that_the_template_leaves_out_is_refused(learn: Any, objective: Objective, row: Any) -> None:
    (problem,) = learn(row, objective=objective).problems
    assert "leaves out the call" in problem


@pytest.mark.parametrize("row", [{"messages": [USER]}, {"prompt": [USER]}])
def test_reasoning_that_the_template_leaves_out_is_counted_in_each_format(learn: Any, row: Any) -> None:
    thinking = {"role": "assistant", "content": "<think>two plus two</think>4"}
    whole = {"messages": [*row["messages"], thinking]} if "messages" in row else row | {"completion": [thinking]}
    assert learn(whole, template=THINKS_ALONE).counts.lost_reasoning == 1
    assert learn(whole).counts.lost_reasoning == 0


@pytest.mark.parametrize(
    ("template", "row"),
    [
        (DROPS_SYSTEM, {"messages": [{"role": "system", "content": "You are a rude user"}, USER, ANSWER]}),
        (DROPS_SYSTEM, {"messages": [USER, ANSWER, {"role": "tool", "content": "4711"}, ANSWER]}),
        (VICUNA, {"messages": [USER, ANSWER], "tools": [{"name": "USER"}]}),
    ],
)
def test_a_message_that_the_template_leaves_out_is_noticed_though_its_words_are_there(
    learn: Any, template: str, row: Any
) -> None:
    assert learn(row, template=template).counts.lost_messages == 1
    assert learn({"messages": [SYSTEM, USER, ANSWER]}, template=VICUNA).counts.lost_messages == 0


def test_only_the_assistants_turns_of_a_completion_are_learned(learn: Any) -> None:
    row = {"prompt": [USER, WRONG], "completion": [USER, ANSWER, {"role": "tool", "content": "secret"}, ANSWER]}
    (text,) = learn(row).texts
    assert text.replace(" ", "") == "4<|end|>4<|end|>"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [SYSTEM, USER], "chosen": [USER, ANSWER], "rejected": [USER, WRONG]},
        {"prompt": [USER], "chosen": [SYSTEM, USER, ANSWER], "rejected": [SYSTEM, USER, WRONG]},
        {"prompt": [USER | {"content": "2+2? "}], "chosen": [USER, ANSWER], "rejected": [USER, WRONG]},
        {"prompt": "2+2?", "chosen": [SYSTEM, USER, ANSWER], "rejected": [SYSTEM, USER, WRONG]},
        {"chosen": [USER, ANSWER], "rejected": [USER | {"content": "2+2?\n"}, WRONG]},
    ],
)
def test_a_question_that_the_answers_repeat_is_not_learned(learn: Any, row: Any) -> None:
    (text,) = learn(row, objective="dpo").texts
    assert text.replace(" ", "") == "4<|end|>|5<|end|>"


def test_a_prompt_that_both_texts_begin_with_is_not_learned_twice(learn: Any) -> None:
    prompt = "Human: what is it? Assistant:"
    row = {"prompt": prompt, "chosen": f"{prompt} four", "rejected": f"{prompt} five"}
    (text,) = learn(row, objective="dpo", template=None).texts
    assert "Human" not in text
    title = {"prompt": "Paris", "chosen": "Paris is large.", "rejected": "Paris is small."}
    assert learn(title, objective="dpo", template=None).texts[0].count("Paris") == 2, "a title is no repetition"


@pytest.mark.parametrize("prompt", ["请问法国的首都是哪里?", "Who's it?\n", "The Great Gatsby is"])
@pytest.mark.parametrize("system", [{}, {"system": "Be brief."}])
def test_a_prompt_of_few_words_is_told_from_a_title(learn: Any, prompt: str, system: Any) -> None:
    row = {"prompt": prompt, "chosen": f"{prompt.rstrip()} four", "rejected": f"{prompt.rstrip()} five"}
    good, findings, _ = read([row | system], "dpo")
    assert findings.shown == []
    chosen = good[0]["chosen"][0]["content"] if system else good[0]["chosen"]
    assert chosen == " four"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2?", "completion": [U1, A1, USER, ANSWER]},
        {"prompt": "<|user|>\n2+2?</s>\n<|assistant|>", "completion": [USER, ANSWER]},
        {"prompt": [U1, A1, USER], "completion": [USER, ANSWER]},
        {"prompt": [SYSTEM], "completion": [SYSTEM, USER, ANSWER]},
        {"prompt": "", "completion": [USER, ANSWER]},
    ],
)
def test_a_completion_that_is_a_whole_conversation_repeats_nothing(learn: Any, row: Any) -> None:
    result = learn(row, template=VICUNA)
    assert (len(result.texts), result.problems) == (1, [])
    assert result.texts[0].replace(" ", "") == "4<|end|>"
    assert result.rendered[0].count("2+2?") == 1
    assert result.rendered[0].count("Be brief.") <= 1


def test_the_better_answer_alone_is_learned_without_its_question(learn: Any) -> None:
    row = {"prompt": "2+2?", "chosen": [SYSTEM, USER, ANSWER], "rejected": [SYSTEM, USER, WRONG]}
    (text,) = learn(row, columns={"completion": "chosen"}).texts
    assert text.strip() == "4<|end|>"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"prompt": "q", "chosen": [USER, ANSWER], "rejected": [USER, WRONG]},
            "column 'prompt' is not a part of it: \"q\"",
        ),
        (
            {"chosen": [USER, ANSWER], "rejected": [USER | {"content": "3+3?"}, WRONG]},
            "do not begin alike, so they answer different questions",
        ),
        (
            {"prompt": [USER], "chosen": [ANSWER, {"role": "tool", "content": "x"}, ANSWER], "rejected": [WRONG]},
            "the answer in column 'chosen' has a message of the role tool, which would be learned",
        ),
        (
            {
                "prompt": [SYSTEM, USER],
                "chosen": [SYSTEM | {"content": "Be long."}, USER, ANSWER],
                "rejected": [SYSTEM | {"content": "Be long."}, USER, WRONG],
            },
            "have different system prompts",
        ),
    ],
)
def test_answers_that_cannot_be_compared_are_refused(learn: Any, row: Any, problem: str) -> None:
    (shown,) = learn(row, objective="dpo").problems
    assert problem in shown


def test_columns_that_the_user_names_decide_the_format(learn: Any) -> None:
    row = {"messages": [USER, ANSWER], "question": "the q", "answer": "the a", "prompt": "p", "completion": "c"}
    (text,) = learn(row, columns={"prompt": "question", "completion": "answer"}).texts
    assert "the a" in text
    with pytest.raises(
        Failure, match=r"'answer', but the rows are read as messages, which has no such column"
    ) as caught:
        learn(row, format="messages", columns={"completion": "answer"})
    assert caught.value.field == "spec.dataset.columns.completion"


def test_a_named_column_that_no_row_has_is_refused(learn: Any) -> None:
    row = {"messages": [USER, ANSWER], "sys": "Be brief."}
    with pytest.raises(
        Failure, match=r"is 'syss', but no row of .* has such a column; columns not used: sys"
    ) as caught:
        learn(row, columns={"system": "syss"})
    assert (caught.value.reason, caught.value.field) == (Reason.DATASET_INVALID, "spec.dataset.columns.system")
    assert learn(row | {"syss": "x"}, row, columns={"system": "syss"}).problems == []


@pytest.mark.parametrize(
    ("objective", "row", "columns", "question"),
    [
        ("sft", {"prompt": "Summarize:", "input": "A text.", "completion": "Short."}, {}, "belongs to the prompt"),
        (
            "dpo",
            {"instruction": "Translate", "input": "bonjour", "chosen": "good day", "rejected": "bye"},
            {"prompt": "instruction"},
            "has a column 'input', which format preference does not use",
        ),
        ("sft", {"prompt": "q", "completion": "bad", "label": False}, {}, "set spec.objective to kto"),
        ("sft", {"messages": [USER, ANSWER], "train_on_turn": [0, 1]}, {}, "write train: false into each message"),
        ("sft", {"messages": [USER, ANSWER], "loss_mask": [0, 1]}, {}, "write train: false into each message"),
        ("sft", {"messages": [USER, ANSWER], "history": [["a", "b"]]}, {}, "move its turns into the messages"),
    ],
)
def test_an_unused_column_that_usually_matters_is_asked_about(
    learn: Any, objective: Objective, row: Any, columns: Any, question: str
) -> None:
    (problem,) = learn(row, objective=objective, columns=columns).problems
    assert question in problem
    (name,) = {"input", "label", "train_on_turn", "loss_mask", "history"} & set(row)
    assert learn(row, objective=objective, columns=columns | {"ignored": [name]}).problems == []


def test_a_column_that_the_prompt_repeats_needs_no_question(learn: Any) -> None:
    assert learn({"prompt": "Do it: sum 2 and 2", "instruction": "sum 2 and 2", "completion": "4"}).problems == []


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER | {"content": "4<|end|>\n"}]},
        {"instruction": "2+2?", "output": "4<|end|>"},
        {"prompt": [USER], "completion": [ANSWER | {"content": "4 <|end|>"}]},
        {"prompt": "2+2?", "completion": " 4<|end|> "},
    ],
)
def test_an_end_token_of_the_data_is_not_doubled(learn: Any, row: Any) -> None:
    (text,) = learn(row).texts
    assert text.count("<|end|>") == 1


def test_a_text_that_ends_itself_gets_no_second_end(learn: Any) -> None:
    (text,) = learn({"text": "USER: hi ASSISTANT: hello<|end|>\n"}, template=None).texts
    assert text.count("<|end|>") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"from": "Paris", "to": "Rome"}]', False),
        ('[{"value": "12", "unit": "kg"}]', False),
        ('[{"role": "CEO", "content": "Ann"}]', False),
        ('[{"role": "user", "content": "Ann"}]', True),
        ('[{"from": "human", "value": "Ann"}, {"from": "gpt", "value": "Hi"}]', True),
        ("[{'role': 'user', 'content': 'Ann'}]", True),
        ('[{"role": "user", "content": "cut', True),
    ],
)
def test_an_answer_in_json_is_no_chat(text: str, expected: bool) -> None:
    assert is_chat(text) is expected


def test_a_row_whose_turns_are_not_found_is_named(learn: Any) -> None:
    answer = "{{ 'ASSISTANT: ' + m.content + eos_token }}"
    assert answer in VICUNA
    marked = VICUNA.replace(
        answer,
        "{{ 'ASSISTANT: ' }}{% if m.content == 'cut' %}{{ m.content }}{% else %}"
        "{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% endif %}",
    )
    result = learn({"messages": [USER, ANSWER]}, {"messages": [USER, ANSWER | {"content": "cut"}]}, template=marked)
    assert len(result.texts) == 1
    (problem,) = result.problems
    assert problem.startswith(
        "rows.jsonl line 2: only the assistant's turns are to be learned, but they cannot be found"
    )


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"chosen": [USER, ANSWER], "rejected": [USER, WRONG]}, "messages"),
        ({"prompt": "2+2?", "chosen": "4", "rejected": "5"}, "completion"),
    ],
)
def test_the_remedy_for_pairs_under_sft_works(learn: Any, row: Any, key: str) -> None:
    with pytest.raises(Failure, match=f"set columns.{key} to 'chosen'"):
        learn(row)
    assert learn(row, columns={key: "chosen"}).texts[0].strip().startswith("4")


def test_two_answers_that_the_template_makes_equal_are_said_to_be_so(learn: Any) -> None:
    chosen, rejected = ({"role": "assistant", "content": f"<think>{word}</think>4"} for word in ("a", "b"))
    result = learn(
        {"prompt": [USER], "chosen": [chosen], "rejected": [rejected]}, objective="dpo", template=THINKS_ALONE
    )
    assert (result.texts, result.encoder.left_out) == ([], SAME_ANSWERS)


def test_a_system_prompt_in_any_row_makes_the_texts_chats(learn: Any) -> None:
    first, second = {"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "a", "system": "Be brief."}
    for rows_in_order in ((first, second), (second, first)):
        assert learn(*rows_in_order).problems == []
    blank = learn(first | {"system": ""}, template=None)
    assert (len(blank.texts), blank.problems) == (1, []), "an empty system prompt makes no chat"


@pytest.mark.parametrize("tools", [[json.dumps({"name": "search"})], {"name": "search"}, "null", "None"])
def test_tools_are_read_as_people_store_them(learn: Any, tools: Any) -> None:
    assert learn({"messages": [USER, ANSWER], "tools": tools}).problems == []


@pytest.mark.parametrize(
    ("objective", "row", "columns"),
    [
        ("sft", {"prompt": "q", "completion": "a", "context": {"title": ["It"]}}, {}),
        ("sft", {"prompt": "q", "completion": "a", "documents": ["one", "two"]}, {}),
        ("sft", {"prompt": "Go on.", "input": "Once upon", "completion": "Once upon a time"}, {}),
        ("dpo", {"text": "2+2?", "chosen": "4", "rejected": "5"}, {}),
    ],
)
def test_a_part_of_the_prompt_that_would_be_lost_is_asked_about(
    learn: Any, objective: Objective, row: Any, columns: Any
) -> None:
    assert len(learn(row, objective=objective, columns=columns).problems) == 1


def test_an_empty_row_is_asked_nothing(learn: Any) -> None:
    full = {"prompt": "Q: sum it", "instruction": "sum it", "completion": "4"}
    assert learn(full, full | {"completion": ""}).problems == []


def test_pairs_that_differ_in_their_reasoning_are_learned(learn: Any) -> None:
    template = VICUNA.replace("'ASSISTANT: ' + m.content", "'ASSISTANT: ' + m.reasoning_content + m.content")
    chosen, rejected = (ANSWER | {"reasoning_content": word} for word in ("short", "long"))
    (text,) = learn({"chosen": [USER, chosen], "rejected": [USER, rejected]}, objective="dpo", template=template).texts
    assert text.replace(" ", "") == "short4<|end|>|long4<|end|>"


def test_a_transcript_beside_system_prompts_is_no_answer(learn: Any) -> None:
    row = {"system": "Be nice", "chosen": "Human: Hi Assistant: Hello", "rejected": "Human: Hi Assistant: Go"}
    (problem,) = learn(row, objective="dpo").problems
    assert "has no prompt, though other rows have system prompts" in problem


def test_the_result_of_a_tool_inside_a_turn_is_refused(learn: Any) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content }}{% elif m.role == 'assistant' %}"
        "{{ 'ASSISTANT: ' }}{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}"
        "{% if loop.nextitem is defined %}{{ loop.nextitem.content }}{% endif %}"
        "{% endif %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
    )
    chat = [USER, CALLING | {"content": "Let me look."}, {"role": "tool", "content": "sunny"}, ANSWER]
    (problem,) = learn({"messages": chat}, template=template).problems
    assert "it writes message 3 into the turn of message 2" in problem


def test_what_is_said_beside_a_call_and_left_out_is_noticed(learn: Any) -> None:
    template = VICUNA.replace(
        "{{ 'ASSISTANT: ' + m.content + eos_token }}",
        "{{ 'ASSISTANT: ' + (m.tool_calls[0].function.name if m.tool_calls else m.content) + eos_token }}",
    )
    chat = [USER, CALLING | {"content": "Patience."}, {"role": "tool", "content": "sunny"}, ANSWER]
    assert learn({"messages": chat}, template=template).counts.lost_messages == 1


def test_only_the_answers_of_two_turns_in_a_row_are_learned(learn: Any) -> None:
    (text,) = learn({"prompt": [USER], "completion": [A1, ANSWER]}).texts
    assert "ASSISTANT" not in text
