"""Nothing on the way to the first step waits without a reason, and nothing is done twice."""

import gc
import subprocess
import sys
import threading
import weakref
from dataclasses import replace
from typing import Any

import pytest

from finetune_trainer.data import dataset, token_cache
from finetune_trainer.models import loading
from finetune_trainer.runtime.background import start_thread
from tools.testing.trainer_jobs import Workbench, train, train_until

CHECKED_WITH = (
    "import sys, finetune_trainer.__main__, finetune_trainer.runtime.configuration; "
    "print(*sorted({'torch', 'transformers', 'boto3', 'botocore', 'httpx', 'pyarrow'} & set(sys.modules)))"
)


def test_a_job_is_checked_before_anything_heavy_is_imported() -> None:
    completed = subprocess.run([sys.executable, "-c", CHECKED_WITH], capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == ""


def test_a_package_that_is_left_out_is_not_found() -> None:
    find = "import importlib.util; assert importlib.util.find_spec('wandb') is None"
    hide = "from finetune_trainer.runtime.libraries import hide_package; hide_package('wandb')"
    subprocess.run([sys.executable, "-c", f"{hide}; {find}"], check=True)


def test_the_model_is_loaded_while_the_data_is_prepared(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    loading_started, load, prepare = threading.Event(), loading.load_base, dataset.prepare_dataset

    def loaded(*arguments: Any, **keywords: Any) -> Any:
        loading_started.set()
        return load(*arguments, **keywords)

    def prepared(*arguments: Any) -> Any:
        assert loading_started.wait(60), "the model waits for the data"
        return prepare(*arguments)

    monkeypatch.setattr(loading, "load_base", loaded)
    monkeypatch.setattr(dataset, "prepare_dataset", prepared)
    result, _ = train(bench.settings())
    assert result.reason == "Succeeded", result.message


def test_a_started_result_is_handed_over_and_not_kept() -> None:
    class Model:
        pass

    wait = start_thread(Model)
    model = wait()
    model_reference = weakref.ref(model)
    del model
    gc.collect()
    assert model_reference() is None

    def fail() -> None:
        raise ValueError("no such model")

    failing = start_thread(fail)
    with pytest.raises(ValueError, match="no such model"):
        failing()


def test_a_second_attempt_takes_the_tokens_of_the_first(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = bench.settings()
    assert train_until(settings, 2).reason == "Preempted"

    def again(*_: Any) -> None:
        raise AssertionError("the rows are tokenised a second time")

    monkeypatch.setattr(token_cache, "write_table", again)
    result, _ = train(replace(settings, attempt=2))
    assert (result.reason, result.resumed_from_step) == ("Succeeded", 2)
