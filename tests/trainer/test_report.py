"""What a run leaves for people: its report in a real browser, its model card, its metrics, and the user's own texts."""

import copy
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.finetunejob import EvaluationStatus, FineTuneJobSpec
from finetune_api.forgetting import ForgettingStatus
from finetune_api.messages import TrainerResult
from finetune_artifacts.digests import digest_of_file
from finetune_trainer.data.learned_parts import Part
from finetune_trainer.report import card, charts, serving
from finetune_trainer.report.contents import Attempt, Bar, DataShape, Report, Sample
from finetune_trainer.report.render import render_report
from finetune_trainer.runtime.effective_settings import Setting, list_effective_settings
from finetune_trainer.session.run import ParameterCounts
from tests.api.objects import FINETUNE_JOB
from tools.testing.browser import Browser, NotInstalledError, chromium, running_browser
from tools.testing.trainer_jobs import Workbench, train, train_until

HOSTILE = "<script>document.title = 'taken'</script> \"'`` ``` & {{ 7 * 7 }} | *x* \n# no heading\n---\n" + "x" * 400
TRAINING = {
    "maxSteps": 6,
    "perDeviceBatchSize": 2,
    "maxLength": 48,
    "learningRate": 2e-3,
    "scheduler": "cosine",
    "warmupRatio": 0.2,
}


def a_report(**changes: Any) -> Report:
    """Return the report of an invented run."""
    spec = FineTuneJobSpec.model_validate(FINETUNE_JOB["spec"])
    report = Report(
        name="support-bot",
        namespace="team",
        created_at="2026-01-01T12:00:00Z",
        base_model="org/base",
        base_revision="0123456789abcdef",
        base_on_hub=True,
        license="apache-2.0",
        dataset="hf://org/rows",
        method="lora",
        objective="sft",
        peft_type="LORA",
        rank=8,
        adapter_uri="s3://adapters/team/support-bot/adapter",
        servable_by=["vllm"],
        evaluation=EvaluationStatus(
            base_loss=3.0, loss=2.0, improvement_percent=33.33, rows=40, base_perplexity=20.0855, perplexity=7.38906
        ),
        samples=[Sample("Prompt", "expected", "of the base", "of the adapter")],
        history=[{"step": step, "loss": 3.0 - step / 10, "learning_rate": 1e-4} for step in range(1, 11)],
        data=DataShape([("Rows", "40")], [Bar("17–32", 36)]),
        settings=list_effective_settings(spec, ["spec.training.maxSteps"]),
        parameters=ParameterCounts(100, 10_000, [("q_proj", 100)]),
        attempts=[Attempt(1, "2026-01-01T11:00:00Z", None, "a GPU"), Attempt(2, "2026-01-01T11:30:00Z", 4, "a GPU")],
        versions={"torch": "2.13.0"},
        verification={"maxLogitDifference": 1e-7},
    )
    return replace(report, **changes)


class PageText(HTMLParser):
    """The elements and the text of a document."""

    def __init__(self, html: str) -> None:
        """Parse the document."""
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_verdict_is_what_was_measured() -> None:
    better = PageText(render_report(a_report())).text
    assert "The adapter is better than its base on held-out data: the loss is 33.3 % lower." in better
    assert "so few are only an indication" not in better
    assert "gate" not in better
    worse_evaluation = EvaluationStatus(base_loss=2.0, loss=2.5, improvement_percent=-25.0, rows=4)
    worse = PageText(render_report(a_report(evaluation=worse_evaluation))).text
    assert "The adapter is no better than its base" in worse
    page = render_report(a_report(evaluation=worse_evaluation.model_copy(update={"passed": False})))
    assert "It did not pass the gate, and is not published." in PageText(page).text
    assert "kind: AdapterDeployment" in render_report(a_report())
    assert "kind: AdapterDeployment" not in page, "nobody is told how to serve it"
    assert "on 4 held-out sequences: so few are only an indication" in worse


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [(2.6, "4 % higher than the base's"), (2.4, "4 % lower than the base's"), (2.5, "equal to the base's")],
)
def test_forgetting_is_drawn_over_the_steps_or_as_bars(loss: float, sentence: str) -> None:
    general = ForgettingStatus(
        base_loss=2.5, loss=loss, increase_percent=40 * (loss - 2.5), base_perplexity=12.2, perplexity=12.9, sequences=5
    )
    evaluation = a_report().evaluation.model_copy(update={"forgetting": general})
    bars = render_report(a_report(evaluation=evaluation))
    assert sentence in PageText(bars).text
    assert "during the training as well" in bars
    assert "Loss on a general text over the steps" not in bars
    history = [*a_report().history, {"step": 4, "general_loss": 2.55}]
    drawn = render_report(a_report(evaluation=evaluation, history=history))
    assert (
        "Loss on a general text over the steps. adapter: 2.5 at step 0, "
        f"{charts.format_number(loss)} at step 10, between {charts.format_number(min(2.5, loss))} and" in drawn
    )
    assert "base: 2.5 at step 0, 2.5 at step 10" in drawn
    assert "during the training as well" not in drawn


def test_what_is_learned_is_marked() -> None:
    row = {"text": [Part("<|user|>Hi<|assistant|>", learned=False), Part("Hello", learned=True)]}
    pair = {"chosen": [Part("yes", learned=True)], "rejected": [Part("no", learned=True)]}
    page = render_report(a_report(learned=[row, pair]))
    assert '<p class="text">&lt;|user|&gt;Hi&lt;|assistant|&gt;<mark>Hello</mark></p>' in page
    assert "<h4>chosen</h4>" in page
    assert "<h4>text</h4>" not in page


def test_what_users_wrote_stays_text() -> None:
    hostile = a_report(
        name=HOSTILE,
        base_model=HOSTILE,
        base_on_hub=False,
        dataset=HOSTILE,
        samples=[Sample(HOSTILE, HOSTILE, HOSTILE, HOSTILE)],
        learned=[{"text": [Part(HOSTILE, learned=False), Part(HOSTILE, learned=True)]}],
        warnings=[HOSTILE],
        settings=[Setting("spec.x", HOSTILE, "your file")],
    )
    page = PageText(render_report(hostile))
    assert "script" not in page.tags
    assert page.text.count("{{ 7 * 7 }}") >= 10, "shown as it is, not evaluated"
    shown = card.render_card(hostile)
    front, body = shown.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front)["model-index"][0]["name"] == HOSTILE
    outside = re.sub(r"(?ms)^(`{4,})\w*\n.*?^\1$", "", body)
    assert "\n# no heading" not in outside, "a fence that is longer than any in the text holds it"
    assert "<script>" not in outside


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (1.23, 1.24), (0.0, 2e-4), (0.0, 31.6e9), (5.0, 5.0), (0.0, 0.0)]
)
def test_an_axis_has_round_numbers_around_the_values(low: float, high: float) -> None:
    ticks = charts.choose_ticks(low, high, 4)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert len(set(charts.label_ticks(ticks))) == len(ticks)


def test_a_long_run_has_no_more_points_than_can_be_seen() -> None:
    history = [{"step": step, "loss": 2.0, "memory_bytes": 3e9} for step in range(1, 5001)]
    shown = charts.make_charts(history, (3.0, 2.0), [100], "sft")
    assert [chart.title for chart in shown] == ["Loss", "Memory"]
    assert all(len(line.points) <= charts.MOST_POINTS for chart in shown for line in chart.lines)
    assert shown[0].lines[0].points[-1].title == "step 5000: training 2 nats per token"
    assert shown[1].unit == "GB"


def test_every_setting_says_where_it_came_from() -> None:
    spec = FineTuneJobSpec.model_validate(FINETUNE_JOB["spec"])
    settings = {
        setting.path: (setting.value, setting.origin)
        for setting in list_effective_settings(spec, ["spec.training.maxSteps"])
    }
    assert settings["spec.method.lora.rank"] == ("8", "your file")
    assert settings["spec.method.lora.alpha"] == ("32", "default")
    assert settings["spec.training.maxSteps"] == ("10", "--set")
    assert settings["spec.training.seed"] == ("42", "default")
    assert settings["spec.output.s3.bucket"] == ("adapters", "your file")
    assert "spec.method.qlora.rank" not in settings


def test_no_credential_in_the_spec_is_published() -> None:
    spec = copy.deepcopy(FINETUNE_JOB["spec"])
    spec["podTemplate"] = {"env": [{"name": "HTTPS_PROXY_PASSWORD", "value": "not-for-others"}]}
    spec["tracking"] = {"mlflow": {"uri": "https://me:not-for-others@mlflow.example.com/"}}
    published = {item.path: item.value for item in list_effective_settings(FineTuneJobSpec.model_validate(spec), [])}
    assert published["spec.podTemplate.env"] == '["HTTPS_PROXY_PASSWORD"]'
    assert published["spec.tracking.mlflow.uri"] == "https://…@mlflow.example.com/"
    assert "not-for-others" not in str(published)


def test_the_model_card_is_what_the_hub_reads() -> None:
    from huggingface_hub import ModelCard

    shown = ModelCard(card.render_card(a_report()))
    data: Any = shown.data  # its attributes are those of the card's header
    metadata = data.to_dict()
    assert metadata["base_model"] == "org/base"
    assert metadata["library_name"] == "peft"
    assert metadata["license"] == "apache-2.0"
    assert metadata["datasets"] == ["org/rows"]
    assert "base_model:adapter:org/base" in metadata["tags"]
    assert data.eval_results is not None
    assert {(result.metric_type, result.metric_value) for result in data.eval_results} == {
        ("loss", 2.0),
        ("perplexity", 7.389),
    }
    assert "vllm serve org/base --enable-lora" in shown.text
    elsewhere = ModelCard(
        card.render_card(a_report(base_model="s3://models/x", base_on_hub=False, dataset="s3://d/x", license=None))
    )
    assert not {"base_model", "datasets", "license"} & set(elsewhere.data.to_dict()), "names that the hub would refuse"


def luminance(colour: str) -> float:
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_the_colours_can_be_told_apart(scheme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", render_report(a_report()), re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", blocks[scheme]))
    for front in ("text", "muted", "one", "two", "good", "bad", "note"):
        for back in ("page", "card", "code"):
            dark, light = sorted([luminance(colours[front]), luminance(colours[back])])
            assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{front} on {back}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Start a headless Chromium, installed where that may be done."""
    try:
        chromium()
    except NotInstalledError as error:
        pytest.skip(str(error))
    with running_browser(tmp_path_factory.mktemp("chromium")) as running:
        yield running


def leave(bench: Workbench) -> tuple[TrainerResult, Path]:
    """Stop a run once, into a directory; return its result and the directory of its adapter."""
    output = bench.directory / "output"

    def settings() -> Any:
        run_settings = bench.settings(training=TRAINING, evaluation={"everySteps": 2, "samples": 2})
        return replace(run_settings, workstation=True, output_directory=output, changes=("spec.training.maxSteps",))

    assert train_until(settings(), 3).reason == "Preempted"
    result, _ = train(settings())
    assert result.reason == "Succeeded", result.message
    return result, output / "adapter"


def test_a_runs_report_on_a_phone_and_on_a_desk_by_day_and_by_night(bench: Workbench, browser: Browser) -> None:
    result, adapter = leave(bench)
    file = adapter / "report.html"
    assert result.report is not None
    assert result.report.uri == str(file)
    for width in (320, 1280):
        for scheme in ("light", "dark"):
            page = browser.show(file, width, scheme)
            assert page.errors == []
            assert page.requests == [], "it asks nobody for anything"
            root = "document.documentElement"
            assert page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth"), f"too wide for {width} px"
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (background == "rgb(16, 20, 26)") == (scheme == "dark")
            page.picture(bench.directory / f"{width}-{scheme}.png")
            smallest = (
                "Math.min(...[...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect().height))"
            )
            assert page.evaluate(smallest) >= 10, "numbers on the axes can be read"

    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate("document.title") == "job: fine-tuning report"
    titles = page.evaluate("[...document.querySelectorAll('figcaption')].map(e => e.firstChild.textContent.trim())")
    assert titles == ["Loss", "Learning rate", "Gradient norm", "Speed", "Memory"]
    named = "e => e.getAttribute('role') == 'img' && e.getAttribute('aria-label')"
    assert page.evaluate(f"[...document.querySelectorAll('svg')].every({named})")
    text = page.evaluate("document.body.innerText")
    assert "The adapter is better than its base" in text
    assert text.count("Question ") >= 2, "two prompts"
    assert re.search(r"After \d+ comes", text), "what the data goes on with"
    assert "8,192 of 103,296 parameters are trained" in text
    assert re.search(r"spec\.training\.maxSteps\s+6\s+--set", text)
    assert re.search(r"precision\s+fp32\s+the run", text)
    assert re.search(r"2\s+\S+ \S+ UTC\s+3\s+CPU", text), "the second attempt began at step 3"
    assert "model.merge_and_unload()" in text


def events(file: Path) -> list[Any]:
    """Yield the records of a TensorBoard file: each has its length, two checksums and a message."""
    from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]

    content, entries = file.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        entries.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return entries


def test_metrics_and_tensorboard_have_every_step_of_every_attempt(bench: Workbench) -> None:
    _, adapter = leave(bench)
    entries = [json.loads(line) for line in (adapter / "metrics.jsonl").read_text().splitlines()]
    logged = [entry for entry in entries if "loss" in entry]
    assert [entry["step"] for entry in logged] == [1, 2, 3, 4, 5, 6]
    for entry in logged:
        assert entry["grad_norm"] > 0
        assert entry["tokens_per_second"] > 0
        assert entry["memory_bytes"] > 50_000_000
    assert logged[1]["learning_rate"] > logged[-1]["learning_rate"]
    (file,) = (adapter / "tensorboard").iterdir()
    scalars = [(event.step, value.tag, value.simple_value) for event in events(file) for value in event.summary.value]
    assert [step for step, tag, _ in scalars if tag == "train/loss"] == [1, 2, 3, 4, 5, 6]
    assert [step for step, tag, _ in scalars if tag == "eval/loss"] == [2, 4, 6]
    assert [value for _, tag, value in scalars if tag == "train/grad_norm"] == pytest.approx(
        [entry["grad_norm"] for entry in logged]
    )
    manifest = json.loads((adapter / "manifest.json").read_text())
    digests = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
    for path in ("report.html", "README.md", "metrics.jsonl", f"tensorboard/{file.name}"):
        assert digests[path] == digest_of_file(adapter / path)
    shown = (adapter / "README.md").read_text()
    assert "A `lora` adapter for pvc://models/tiny" in shown


def test_what_the_report_says_to_type_works(
    bench: Workbench, base_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, adapter = leave(bench)
    written = a_report(adapter_uri=str(adapter), base_model="pvc://models/tiny", base_on_hub=False, base_revision=None)
    load, merge = serving.build_load_snippet(written), serving.build_merge_snippet(written)
    assert load is not None
    assert merge is not None
    assert f"<code>{load}" in render_report(written).replace("&#39;", "'").replace("&#34;", '"')
    monkeypatch.chdir(bench.directory)
    scope: dict[str, Any] = {}
    exec(f"{load.replace('/path/to/base', str(base_model))}\n{merge}", scope)
    merged = scope["AutoModelForCausalLM"].from_pretrained(bench.directory / "merged")
    assert merged.num_parameters() == 103_296 - 8_192


@pytest.mark.parametrize(
    ("kind", "servable", "loads", "merges", "serves"),
    [
        ("LORA", ["vllm"], True, True, True),
        ("OFT", [], True, True, False),
        ("PROMPT_TUNING", [], True, False, False),
        ("BOTTLENECK", [], False, False, False),
        ("FULL", [], True, False, True),
    ],
)
def test_no_way_is_offered_that_does_not_lead_there(
    kind: str, servable: list[str], loads: bool, merges: bool, serves: bool
) -> None:
    written = a_report(peft_type=kind, servable_by=servable)
    text, page = card.render_card(written), PageText(render_report(written)).text
    for shown in (text, page):
        assert ("from_pretrained" in shown) == loads
        assert ("merge_and_unload" in shown) == merges
        assert ("vllm serve" in shown) == serves
        assert ("PeftModel" in shown) == (loads and kind != "FULL")
    assert ("kind: AdapterDeployment" in page) == bool(servable)


def test_parameters_are_counted_as_they_are_and_where_they_are(bench: Workbench) -> None:
    result, run = train(bench.settings(method={"qlora": {"rank": 4}}))
    assert result.reason == "Succeeded", result.message
    assert run.parameters is not None
    assert (run.parameters.trainable, run.parameters.total) == (8192, 103_296), "not what 4 bits are packed into"
    assert {"q_proj", "down_proj"} < dict(run.parameters.modules).keys()


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", "q_proj"),
        ("base_model.model.lm_head.modules_to_save.default.weight", "lm_head"),
        ("prompt_encoder.default.mlp_head.0.weight", "prompt_encoder"),
        ("model.layers.1.mlp.down_proj.weight", "down_proj"),
        ("base_model.model.model.layers.0.mlp.up_proj.base_layer.bias", "up_proj"),
    ],
)
def test_a_weight_belongs_to_a_module(name: str, module: str) -> None:
    from finetune_trainer.training.parameters import find_module

    assert find_module(name) == module


def test_without_samples_nothing_is_generated(bench: Workbench) -> None:
    result, _ = train(bench.settings(evaluation={"samples": 0}))
    assert result.reason == "Succeeded", result.message
    assert result.report is not None
    assert result.report.uri == f"s3://{bench.bucket}/team/job/adapter/report.html"
    assert "In the data" not in bench.read("team/job/adapter/report.html").decode()
    again, _ = train(bench.settings(evaluation={"samples": 0}))
    assert again.report == result.report
