"""What the base scores on the held-out rows is computed once, as long as nothing changes that decides it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.data_counts import Counts
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.reasons import Reason
from finetune_api.uris import DirectoryUri
from finetune_artifacts.directory import DirectoryStorage
from finetune_artifacts.errors import ArtifactError, Fault, Purpose
from finetune_trainer.data.dataset import Example, Examples
from finetune_trainer.data.sources import Inputs, LocalData
from finetune_trainer.evaluation import forgetting, measures
from finetune_trainer.evaluation.base_scores import BaseScores, BaseScoreStore, open_store
from finetune_trainer.models import device
from finetune_trainer.models.loading import load_base
from finetune_trainer.runtime import libraries
from tools.testing.trainer_jobs import ROWS, Workbench, jsonl, train

SCORES = BaseScores(held_out=[[1 / 3], [2.5]], general_loss=None)
EXAMPLES = Examples(
    train=None,
    held_out=[Example([1, 2, 3], [-100, 2, 3])],
    held_out_rows=[{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}],
    layout="plain text",
    counts=Counts(),
    digests=[],
    cache_key="",
)


class Case:
    """Everything that decides the base's scores."""

    def __init__(self, model: Path, output: Path) -> None:
        """Take a copy of the model, which a test may change."""
        self.directory, self.output, self.dtype = model, DirectoryUri(str(output), "checkpoints"), torch.float32
        self.spec: dict[str, Any] = {
            "model": {"uri": "pvc://models/tiny"},
            "dataset": {"uri": "configmap://data/train.jsonl"},
            "method": {"lora": {}},
            "output": {"s3": {"bucket": "adapters"}, "secretRef": {"name": "s3"}},
        }
        self.examples, self.tokens = EXAMPLES, 48
        self.placement: device.Placement = "gpu"
        self.change_base: Callable[[Any], None] = lambda base: None

    def store(self) -> BaseScoreStore:
        """Open the store as an attempt does."""
        return open_store(
            DirectoryStorage(Purpose.OUTPUT),
            self.output,
            spec=FineTuneJobSpec.model_validate(self.spec),
            inputs=Inputs(self.directory, None, LocalData("configmap://data/train.jsonl", ()), None),
            examples=self.examples,
            tokens=self.tokens,
            padding=None,
            placement=self.placement,
        )

    def find_file(self) -> Any:
        """Return where the scores are kept."""
        base = load_base(self.directory, self.dtype)
        self.change_base(base)
        return self.store().find_file(base)


@pytest.fixture
def case(base_model: Path, tmp_path: Path) -> Case:
    return Case(Path(shutil.copytree(base_model, tmp_path / "model")), tmp_path / "output")


def change_weight(base: Any) -> None:
    with torch.no_grad():
        base.model.embed_tokens.weight[3, 1] += 1e-6


def change_buffer(base: Any) -> None:
    base.model.rotary_emb.inv_freq[0] *= 2


def change_config(case: Case) -> None:
    config = case.directory / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))


def set_examples(**values: Any) -> Callable[[Case, pytest.MonkeyPatch], None]:
    return lambda case, patch: setattr(case, "examples", replace(EXAMPLES, **values))


CHANGES: dict[str, Callable[[Case, pytest.MonkeyPatch], None]] = {
    "a row": set_examples(held_out=[Example([1, 2, 4], [-100, 2, 4])]),
    "what is learned of a row": set_examples(held_out=[Example([1, 2, 3], [-100, -100, 3])]),
    "a row with two answers": set_examples(held_out_rows=[{"input_ids": [1, 2, 4], "labels": [-100, 2, 4]}]),
    "the general text": set_examples(forgetting_text=[Example([1, 2], [1, 2])]),
    "a weight": lambda case, patch: setattr(case, "change_base", change_weight),
    "a buffer": lambda case, patch: setattr(case, "change_base", change_buffer),
    "config.json": lambda case, patch: change_config(case),
    "the dtype": lambda case, patch: setattr(case, "dtype", torch.bfloat16),
    "the size of a batch": lambda case, patch: setattr(case, "tokens", 96),
    "the objective": lambda case, patch: case.spec.update(objective="orpo"),
    "beta": lambda case, patch: case.spec.update(objective="dpo", preference={"beta": 0.3}),
    "where it computes": lambda case, patch: setattr(case, "placement", "streamed"),
    "the device": lambda case, patch: patch.setattr(device, "device_name", lambda: "another"),
    "a library": lambda case, patch: patch.setattr(libraries, "library_versions", lambda: {"torch": "1.0"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_decides_the_scores_gives_them_another_file(
    case: Case, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "beta":
        case.spec |= {"objective": "dpo", "preference": {"beta": 0.1}}
    before = case.find_file()
    assert before == case.find_file()
    CHANGES[name](case, monkeypatch)
    assert case.find_file() != before


def test_settings_of_the_training_give_them_no_other_file(case: Case) -> None:
    before = case.find_file()
    case.spec |= {"method": {"dora": {"rank": 4}}, "training": {"learningRate": 0.1, "epochs": 3}}
    assert case.find_file() == before


def test_scores_are_kept_bit_for_bit_and_damaged_ones_are_computed_again(case: Case) -> None:
    store, file = case.store(), case.find_file()
    calls: list[None] = []

    def compute() -> BaseScores:
        calls.append(None)
        return SCORES

    assert [store.load_or_compute(file, compute) for _ in range(3)] == [SCORES] * 3
    assert len(calls) == 1
    Path(file.root, file.key).write_text('{"heldOut": [[1.5]')
    assert store.load_or_compute(file, compute) == SCORES
    assert len(calls) == 2


def test_a_storage_that_fails_is_no_error(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise ArtifactError(Purpose.OUTPUT, Fault.UNREACHABLE, "no answer")

    monkeypatch.setattr(DirectoryStorage, "read", fail)
    monkeypatch.setattr(DirectoryStorage, "put_new", fail)
    assert case.store().load_or_compute(case.find_file(), lambda: SCORES) == SCORES


def test_nothing_is_kept_of_a_model_with_code_of_its_own(case: Case) -> None:
    case.spec["model"]["trustRemoteCode"] = True
    assert case.find_file() is None


def test_nothing_is_kept_of_a_base_whose_weights_are_not_all_in_memory(case: Case) -> None:
    with torch.device("meta"):
        layer = torch.nn.Linear(2, 2)
    assert case.store().find_file(layer) is None


def test_a_second_attempt_does_not_compute_the_losses_of_the_base_again(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def count(module: Any, name: str) -> None:
        original = getattr(module, name)

        def counted(*args: Any) -> Any:
            measured.append(name)
            return original(*args)

        monkeypatch.setattr(module, name, counted)

    count(measures, "summed_losses")
    count(forgetting, "mean_loss")
    spec = {"evaluation": {"gate": {"max": 0.001}, "forgetting": {"maxSequences": 2}}}
    first, _ = train(bench.settings(**spec))
    assert (first.reason, sorted(measured)) == (Reason.GATE_FAILED, ["mean_loss"] * 2 + ["summed_losses"] * 2)
    measured.clear()
    second, _ = train(bench.settings(**spec))
    assert (second.evaluation, sorted(measured)) == (first.evaluation, ["mean_loss", "summed_losses"])
    measured.clear()
    job = bench.job(**spec)
    job["metadata"] |= {"uid": "another"}
    bench.dataset(jsonl([row | {"completion": f"{row['completion']} Then more."} for row in ROWS]))
    third, _ = train(bench.settings_of(job))
    assert sorted(measured) == ["mean_loss"] * 2 + ["summed_losses"] * 2
    assert third.evaluation is not None
    assert first.evaluation is not None
    assert third.evaluation.base_loss != first.evaluation.base_loss


def test_the_second_attempt_of_dpo_compares_with_the_kept_reference(case: Case) -> None:
    spec = FineTuneJobSpec.model_validate(case.spec | {"objective": "dpo"})
    rows = [{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}]
    measure = measures.make_measure(spec, [], rows, 8)
    measure.judge([[-1.0, -2.0]])
    assert measure.judge([[-1.0, -22.0]]).loss == pytest.approx(0.1269, abs=1e-3)
    assert measure.judge([[-1.0, -2.0]]).loss == pytest.approx(0.6931, abs=1e-3)
