"""`finetune preview`: what is learned of the first rows is shown before anything is trained."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from finetune_api.reasons import Reason
from finetune_cli.preview import show
from finetune_trainer.data import tokens
from finetune_trainer.data.learned_parts import Part
from finetune_trainer.preflight import preview
from finetune_trainer.preflight.preview import PreviewedRow, make_preview
from finetune_trainer.runtime.failures import Failure
from tests.cli.run import finetune
from tools.testing.trainer_jobs import CHATS, ROWS, Workbench, jsonl


def rows_of(bench: Workbench, text: str, count: int = 5, **spec: Any) -> list[PreviewedRow]:
    """Return the preview's rows for a dataset."""
    spec.setdefault("dataset", {}).update({"uri": bench.dataset(text)})
    return make_preview(bench.settings(**spec), count, 1).rows


def text_of(row: PreviewedRow, name: str = "text", *, learned: bool) -> str:
    """Return the learned or the other parts of a sequence, joined."""
    return "".join(part.text for part in row.sequences[name] if part.learned is learned)


def test_of_a_chat_the_assistants_turns_are_learned_with_their_ends(bench: Workbench) -> None:
    first = rows_of(bench, jsonl(CHATS))[0]
    assert text_of(first, learned=True) == "1.<|end|>2, of course.<|end|>"
    assert text_of(first, learned=False).startswith("<|user|>What follows 0?<|end|><|assistant|>")
    assert first.location == "train.jsonl line 1"
    assert first.learned_tokens < first.tokens


def test_the_parts_together_are_the_whole_text_whatever_a_token_holds(bench: Workbench) -> None:
    row = {"prompt": "Как? 你 🙂\n", "completion": " naïve 🙃"}
    (previewed,) = rows_of(bench, jsonl([row]))
    assert "".join(part.text for part in previewed.sequences["text"]) == f"{row['prompt']}{row['completion']}<|end|>"


def test_of_preferences_each_answer_is_shown_after_the_prompt(bench: Workbench) -> None:
    row = {"prompt": "What follows 1?\n", "chosen": "2, I think.", "rejected": "No idea."}
    (previewed,) = rows_of(bench, jsonl([row]), objective="dpo")
    assert list(previewed.sequences) == ["chosen", "rejected"]
    assert text_of(previewed, "rejected", learned=False) == row["prompt"]
    assert text_of(previewed, "rejected", learned=True) == "No idea.<|end|>"


def test_each_row_shows_what_is_cut_off_left_out_or_wrong(bench: Workbench) -> None:
    long = {"prompt": "p\n", "completion": "word " * 40}
    lost = {"prompt": "question " * 60, "completion": "answer"}
    lines = jsonl([ROWS[0], long, lost, {"prompt": "p", "completion": 3}, {"prompt": "", "completion": ""}])
    good, cut, left_out, wrong, empty = rows_of(bench, lines)
    assert (good.cut_tokens, good.problem) == (0, "")
    assert cut.tokens == 48
    assert cut.cut_tokens > 0
    assert left_out.problem == f"left out: {tokens.CUT_AWAY}"
    assert "must be" in wrong.problem
    assert empty.problem == f"left out: {preview.EMPTY}"


def test_a_row_that_the_chat_template_refuses_is_shown_with_its_words(bench: Workbench, tmp_path: Path) -> None:
    model = bench.mounts / "claims" / "strict" / "model"
    model.mkdir(parents=True)
    for path in (bench.mounts / "claims" / "models" / "tiny").iterdir():
        if not path.name.endswith(".safetensors"):
            (model / path.name).write_bytes(path.read_bytes())
    template = model / "chat_template.jinja"
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    template.write_text(refusal + template.read_text())
    chat = [{"role": "system", "content": "Be brief."}, *CHATS[0]["messages"]]
    first, second = rows_of(bench, jsonl([{"messages": chat}, CHATS[1]]), model={"uri": "pvc://strict/model"})
    assert first.problem == "the model's chat template refuses it (System role not supported)"
    assert second.sequences


def test_plain_text_is_shown_in_blocks_of_which_everything_is_learned(bench: Workbench) -> None:
    uri = bench.dataset("To be, or not to be, that is the question. " * 20, "hamlet.txt")
    result = make_preview(bench.settings(dataset={"uri": uri}), 2, 1)
    assert (result.layout, [row.location for row in result.rows]) == ("plain text", ["block 1", "block 2"])
    assert all(part.learned for row in result.rows for part in row.sequences["text"])


def test_columns_that_are_not_used_are_named(bench: Workbench) -> None:
    uri = bench.dataset(jsonl([row | {"note": "a text"} for row in ROWS]))
    result = make_preview(bench.settings(dataset={"uri": uri}), 3, 1)
    assert (result.columns, result.unused_columns, len(result.rows)) == (["prompt", "completion"], ["note"], 3)


def test_a_dataset_that_is_missing_is_a_failure_with_its_reason(bench: Workbench) -> None:
    with pytest.raises(Failure) as caught:
        make_preview(bench.settings(dataset={"uri": "configmap://data/none.jsonl"}), 3, 1)
    assert caught.value.reason is Reason.DATASET_NOT_FOUND


@pytest.fixture
def example() -> preview.Preview:
    """Return a preview of two rows."""
    row = PreviewedRow("rows.jsonl line 1", {"text": [Part("What? ", False), Part("That.", True)]}, 9, 4, 3)
    return preview.Preview("messages", ["messages"], ["note"], [row, PreviewedRow("rows.jsonl line 2", problem="bad")])


def test_learned_parts_are_green_on_a_terminal_and_marked_in_a_pipe(example: preview.Preview) -> None:
    def printed(**options: Any) -> str:
        page = io.StringIO()
        show(example, Console(file=page, width=120, highlight=False, **options))
        return page.getvalue()

    terminal, pipe = printed(force_terminal=True, color_system="standard"), printed()
    assert "\x1b[32mThat." in terminal
    assert "⟦" not in terminal
    assert "What? ⟦That.⟧" in pipe
    assert "rows.jsonl line 1: 9 tokens, 4 of them learned, 3 more are cut off" in pipe
    assert "rows.jsonl line 2: bad" in pipe
    assert "not used: note" in pipe.replace("\n", " ")


def test_the_command_shows_rows_of_a_file_as_json_without_weights(
    workbench: Callable[[], Workbench], tmp_path: Path
) -> None:
    bench = workbench()
    models = tmp_path / "models"
    (models / "tiny").mkdir(parents=True)
    for path in (bench.mounts / "claims" / "models" / "tiny").iterdir():
        if not path.name.endswith(".safetensors"):
            (models / "tiny" / path.name).write_bytes(path.read_bytes())
    data = tmp_path / "rows.jsonl"
    data.write_text(jsonl(CHATS))
    job = bench.job(dataset={"uri": f"file://{data}"}) | {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
    }
    mount = f"--mount=models={models}"
    ran = finetune("preview", "-", "--rows", "2", "--output", "json", mount, stdin=yaml.safe_dump(job))
    assert ran.code == 0, ran.err
    output = json.loads(ran.out)
    assert (output["layout"], output["columns"], len(output["rows"])) == ("messages", ["messages"], 2)
    learned = [part["text"] for part in output["rows"][0]["sequences"]["text"] if part["learned"]]
    assert learned == ["1.<|end|>", "2, of course.<|end|>"]
