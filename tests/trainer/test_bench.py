"""The trainer's benchmark runs, and says what it measured as a table and as JSON. Its numbers are not tested."""

import io
import json
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest
from rich.console import Console

from bench.trainer.__main__ import draw_tokens_per_second, main, make_gpu_table, make_table
from bench.trainer.contenders import Course
from bench.trainer.gpu import Reference, measure
from bench.trainer.measure import loss_difference, share_not_training
from bench.trainer.startup import FIRST_STEP
from finetune_api.reasons import EXIT_CODES, Reason
from finetune_trainer.runtime.logs import log
from tools.testing.llama_8b import LLAMA_8B


@pytest.fixture(autouse=True)
def loud() -> Iterator[None]:
    """Restore the trainer's log, which a benchmark silences, for the tests after it."""
    level = log.level
    yield
    log.setLevel(level)


def test_each_comparison_is_measured_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tiny", "--only", "overhead", "--only", "script", "--only", "switches", "--output", "json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["overhead"]["same_losses"], "our loop computes what TRL's does, bit for bit"
    assert {"median", "min", "max"} == set(results["overhead"]["wall"]) == set(results["overhead"]["cpu"])
    assert results["script"]["ratio"]["median"] > 0
    assert results["script"]["tokens"][0] == results["script"]["tokens"][1], "both learn all tokens of all texts"
    assert {"packing", "gradientCheckpointing"} <= set(results["switches"])
    page = io.StringIO()
    Console(width=160, file=page).print(make_table(results))
    text = page.getvalue()
    assert "our loop over TRL's" in text
    assert "useful tokens/s, ours over the script" in text
    root = ElementTree.fromstring(draw_tokens_per_second(results["script"]))
    assert len(root.findall("{http://www.w3.org/2000/svg}rect")) == 2


@pytest.mark.exhaustive  # it starts the trainer several times
def test_a_whole_run_is_measured_by_phase(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tiny", "--only", "phases", "--output", "json"]) == 0
    results = json.loads(capsys.readouterr().out)
    seconds = results["phases"]["seconds"]
    assert {"import", "load", "train", "verify", "publish"} <= set(seconds)
    assert 0 < results["phases"]["not_training"] < 1
    page = io.StringIO()
    Console(width=160, file=page).print(make_table({"threads": "1", **results}))
    assert "not training" in page.getvalue()


@pytest.mark.exhaustive  # it starts the trainer several times
def test_the_time_to_the_first_step_is_measured_by_phase(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tiny", "--only", "start", "--output", "json"]) == 0
    start = json.loads(capsys.readouterr().out)["start"]
    assert start["first_step"]["median"] > start["wrong_job_refused"]["median"] > 0
    assert {"importing torch, transformers, peft and trl"} <= set(start["phases"])
    assert FIRST_STEP not in start["phases"]


def test_the_comparison_on_a_gpu_runs_with_a_small_model_on_a_cpu() -> None:
    config = LLAMA_8B | {
        "vocab_size": 350, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    results = measure(Reference(config, 16, 2, warm_up=1, steps=2, contenders=("ours", "TRL")), lambda _: None)
    assert [figures["name"] for figures in results["figures"]] == ["ours", "TRL"]
    assert all(figures["tokens_per_second"] > 0 for figures in results["figures"])
    page = io.StringIO()
    Console(width=160, file=page).print(make_gpu_table(results))
    assert all(words in page.getvalue() for words in ("12,473", "our estimate", "TRL"))


def test_without_a_gpu_the_comparison_on_one_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--gpu"]) == EXIT_CODES[Reason.GPU_NOT_VISIBLE]
    assert "PyTorch sees no GPU" in capsys.readouterr().err


def test_the_share_that_is_not_training() -> None:
    assert share_not_training({"load": 1.0, "train": 3.0}) == 0.25
    assert share_not_training({"load": 1.0}) == 1


def test_losses_are_compared_by_the_tokens_that_were_seen() -> None:
    def course(tokens: list[int], losses: list[float]) -> Course:
        return Course([], [], losses, tokens)

    slow = course([10, 20, 30, 40, 50, 60, 70, 80], [8, 8, 7, 7, 6, 6, 5, 5])
    fast = course([20, 40, 60, 80], [8, 7, 6, 5])
    assert loss_difference(fast, slow) == 0
    assert loss_difference(course([20, 40, 60, 80], [8, 7, 6, 6]), slow) == pytest.approx(0.2)
