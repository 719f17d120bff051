"""A model that brings code of its own: never run in the preflight, in the trainer only where the job asks for it."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api import transformers_tables
from finetune_api.reasons import EXIT_CODES, Reason
from finetune_trainer.attempt import exit_code
from finetune_trainer.merge import merge_adapter
from finetune_trainer.preflight import check
from finetune_trainer.runtime.settings import Settings
from tools.generate import find_stale
from tools.testing.hub_server import COMMIT, Hub, running_hub
from tools.testing.tiny_model import change_config
from tools.testing.trainer_jobs import Workbench, train
from tools.transformers_tables import table

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({marker!r}).write_text("the code ran")


class TinyConfig(LlamaConfig):
    model_type = "tinycustom"


class TinyForCausalLM(LlamaForCausalLM):
    config_class = TinyConfig
"""


@dataclasses.dataclass(frozen=True)
class RemoteCodeModel:
    """A model with code of its own, and the file that the code leaves when it runs."""

    directory: Path
    marker: Path


@pytest.fixture
def custom(base_model: Path, tmp_path: Path) -> RemoteCodeModel:
    """Return the tiny model as one that transformers does not know."""
    custom_model = RemoteCodeModel(tmp_path / "claim" / "custom", tmp_path / "marker")
    shutil.copytree(base_model, custom_model.directory)
    change_config(
        custom_model.directory,
        model_type="tinycustom",
        architectures=["TinyForCausalLM"],
        auto_map={
            "AutoConfig": "modeling_tinycustom.TinyConfig",
            "AutoModelForCausalLM": "modeling_tinycustom.TinyForCausalLM",
        },
    )
    (custom_model.directory / "modeling_tinycustom.py").write_text(CODE.format(marker=str(custom_model.marker)))
    return custom_model


@pytest.fixture
def hub(custom: RemoteCodeModel) -> Iterator[Hub]:
    """Yield a hub that has it."""
    with running_hub({"acme/custom": custom.directory}, set()) as running:
        yield running


@pytest.fixture
def settings(bench: Workbench, custom: RemoteCodeModel, hub: Hub) -> Callable[..., Settings]:
    """Make jobs on that model, wherever it is."""

    def make(source: str, trust: bool, **spec: Any) -> Settings:
        if source == "pvc":
            (bench.mounts / "claims" / "custom").symlink_to(custom.directory.parent)
        if source == "s3":
            for path in custom.directory.iterdir():
                key = f"models/custom/{path.name}"
                bench.server.store().client.put_object(Bucket=bench.bucket, Key=key, Body=path.read_bytes())
        uris = {"pvc": "pvc://custom/custom", "hf": "hf://acme/custom", "s3": f"s3://{bench.bucket}/models/custom"}
        model = {"uri": uris[source]} | ({"trustRemoteCode": True} if trust else {})
        settings = bench.settings(model=model, **spec)
        return dataclasses.replace(settings, hub_endpoint=hub.endpoint)

    return make


@pytest.mark.parametrize("source", ["pvc", "hf", "s3"])
def test_code_that_nobody_trusts_is_never_run(
    settings: Callable[..., Settings], custom: RemoteCodeModel, source: str
) -> None:
    job = settings(source, False)
    (problem,) = check(job).problems
    assert (problem.reason, problem.field) == (Reason.MODEL_UNSUPPORTED, "spec.model.trustRemoteCode")
    assert "modeling_tinycustom.TinyForCausalLM" in problem.message
    assert "models of type 'tinycustom'" in problem.message
    assert "chart value trainer.allowRemoteCode" in problem.message
    result, _ = train(job)
    assert (result.message, exit_code(result)) == (str(problem), EXIT_CODES[Reason.MODEL_UNSUPPORTED])
    assert not custom.marker.exists()


@pytest.mark.parametrize("source", ["pvc", "hf", "s3"])
def test_code_that_the_user_trusts_runs_in_the_trainer_alone(
    settings: Callable[..., Settings], bench: Workbench, custom: RemoteCodeModel, source: str
) -> None:
    merged = {"output": bench.job()["spec"]["output"] | {"mergedModel": True}} if source == "pvc" else {}
    job = settings(source, True, **merged)
    assert check(job).problems == []
    assert not custom.marker.exists(), "the preflight runs none of it"
    result, _ = train(job)
    assert result.reason == "Succeeded", result.message
    assert custom.marker.exists()
    assert result.adapter is not None
    assert result.adapter.base_revision == (COMMIT if source == "hf" else None)
    if merged:
        assert merge_adapter(job).reason == "Succeeded"
        assert "team/job/merged/modeling_tinycustom.py" in bench.objects(), "a whole model has its code with it"


def test_a_model_that_transformers_knows_needs_none_of_the_code_it_brings(
    settings: Callable[..., Settings], custom: RemoteCodeModel
) -> None:
    change_config(custom.directory, model_type="llama")
    job = settings("pvc", False)
    assert check(job).problems == []
    result, _ = train(job)
    assert result.reason == "Succeeded", result.message
    assert not custom.marker.exists()


def test_the_table_of_what_transformers_has_is_that_of_the_installed_one() -> None:
    assert find_stale({"operator/finetune_api/transformers.json": table()}) == [], (
        "run `make generate` and commit the result"
    )
    assert transformers_tables.is_known("llama")
