"""Datasets from a fake hub, through the hub's own client: the right files of the right split, and each refusal."""

import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
import pytest

from finetune_api.messages import PreflightResult
from finetune_api.reasons import Reason
from finetune_api.uris import S3Uri
from finetune_trainer.data import sources
from finetune_trainer.hub import dataset_files
from finetune_trainer.hub.dataset_files import HubDataset
from finetune_trainer.preflight import check
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.settings import Settings
from tools.testing.hub_server import COMMIT, TOKEN, Hub, running_hub
from tools.testing.trainer_jobs import ROWS, Workbench, jsonl, train


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Yield a hub with one dataset of two splits, once public and once gated."""
    root = tmp_path / "rows"
    (root / "data").mkdir(parents=True)
    (root / "README.md").write_text("# Rows")
    for number, rows in enumerate((ROWS[:20], ROWS[20:])):
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, root / "data" / f"train-0000{number}-of-00002.parquet")
    (root / "data" / "test.jsonl").write_text(jsonl(ROWS[:5]))
    with running_hub({"datasets/acme/rows": root, "datasets/acme/gated": root}, {"datasets/acme/gated"}) as running:
        yield running


def settings(bench: Workbench, hub: Hub, *, token: str | None = None, **dataset: Any) -> Settings:
    """Return settings of a job on a dataset of the hub."""
    section = {"uri": "hf://acme/rows"} | dataset
    if token is not None:
        secret = bench.mounts / "secrets" / "hub"
        secret.mkdir(parents=True)
        (secret / "HF_TOKEN").write_text(token)
        section |= {"secretRef": {"name": "hub"}}
    return dataclasses.replace(bench.settings(dataset=section), hub_endpoint=hub.endpoint)


def only_problem(result: PreflightResult) -> tuple[str, str, str]:
    """Return the one problem."""
    (problem,) = result.problems
    return problem.reason, problem.field, problem.message


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_split_is_looked_at_where_it_is(bench: Workbench, hub: Hub, revision: str | None) -> None:
    result = check(settings(bench, hub, validation={"split": "test"}, **({"revision": revision} if revision else {})))
    assert result.problems == []
    assert (
        "spec.dataset.format auto: the dataset is read as promptCompletion (columns prompt, completion)"
        in result.warnings
    )


def test_the_files_of_each_split_are_fetched(bench: Workbench, hub: Hub) -> None:
    job = settings(bench, hub, validation={"split": "test"})
    train, held_out = sources.find_splits(job.job.spec.dataset)
    assert held_out is not None
    for split, names in (
        (train, ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]),
        (held_out, ["test.jsonl"]),
    ):
        downloaded = sources.download(job, split, bench.directory / split.split, 5)
        assert [path.name for path in downloaded.files] == names
        assert all(path.is_file() for path in downloaded.files)


def test_a_dataset_of_the_hub_is_trained_on(bench: Workbench, hub: Hub) -> None:
    result, _ = train(settings(bench, hub, uri="hf://acme/gated", token=TOKEN, validation={"split": "test"}))
    assert result.reason == "Succeeded", result.message
    assert result.data is not None
    assert (result.data.sequences, result.data.held_out, result.data.leaked) == (len(ROWS), 5, 5)


def test_a_gated_dataset_names_its_licence_page(bench: Workbench, hub: Hub) -> None:
    reason, path, message = only_problem(check(settings(bench, hub, uri="hf://acme/gated")))
    assert (reason, path) == (Reason.DATASET_ACCESS_DENIED, "spec.dataset.uri")
    assert f"accept its licence at {hub.endpoint}/datasets/acme/gated" in message
    assert "spec.dataset.secretRef" in message


def test_a_gated_dataset_with_the_right_token(bench: Workbench, hub: Hub) -> None:
    assert check(settings(bench, hub, uri="hf://acme/gated", token=TOKEN)).problems == []


@pytest.mark.parametrize(
    ("dataset", "field", "expected"),
    [
        ({"uri": "hf://acme/nothing"}, "spec.dataset.uri", "hf://acme/nothing does not exist"),
        ({"revision": "v9"}, "spec.dataset.revision", "has no revision 'v9'"),
        (
            {"split": "other"},
            "spec.dataset.split",
            "has no file of the split 'other' (its files: README.md, data/test.jsonl",
        ),
        ({"validation": {"split": "dev"}}, "spec.dataset.validation.split", "has no file of the split 'dev'"),
        ({"name": "main"}, "spec.dataset.name", "has no configuration 'main'"),
    ],
)
def test_what_is_not_there(bench: Workbench, hub: Hub, dataset: dict[str, Any], field: str, expected: str) -> None:
    reason, path, message = only_problem(check(settings(bench, hub, **dataset)))
    assert (reason, path) == (Reason.DATASET_NOT_FOUND, field)
    assert expected in message


def test_a_hub_that_does_not_answer(bench: Workbench, hub: Hub) -> None:
    job = dataclasses.replace(settings(bench, hub), hub_endpoint="http://127.0.0.1:9")
    reason, _, message = only_problem(check(job))
    assert reason is Reason.DOWNLOAD_FAILED
    assert "http://127.0.0.1:9" in message


def test_a_card_says_which_files_make_a_split(bench: Workbench, hub: Hub) -> None:
    root = hub.repositories["datasets/acme/rows"]
    card = {"configs": [{"config_name": "main", "data_files": [{"split": "small", "path": "data/*.jsonl"}]}]}
    (root / "card.json").write_text(json.dumps(card))
    assert check(settings(bench, hub, split="small")).problems == []
    _, path, message = only_problem(check(settings(bench, hub)))
    assert path == "spec.dataset.split"
    assert "has no split 'train'; its splits are: small" in message


FILES = ("README.md", "en/train-0.parquet", "en/test.parquet", "de/train.jsonl.zst", "de/dev.json", "de/trainable.csv")
CONFIGS = (
    {
        "config_name": "en",
        "data_files": [
            {"split": "train", "path": ["en/train-*.parquet"]},
            {"split": "test", "path": "en/test.parquet"},
        ],
    },
    {"config_name": "de", "data_dir": "de", "default": True},
    {"config_name": "all", "data_files": "*/t*"},
)


@pytest.mark.parametrize(
    ("configs", "name", "split", "expected"),
    [
        (CONFIGS, "en", "train", ["en/train-0.parquet"]),
        (CONFIGS, "en", "test", ["en/test.parquet"]),
        (CONFIGS, None, "train", ["de/train.jsonl.zst"]),
        (CONFIGS, "de", "validation", ["de/dev.json"]),
        (CONFIGS, "all", "train", ["de/train.jsonl.zst", "de/trainable.csv", "en/test.parquet", "en/train-0.parquet"]),
        (CONFIGS[:1], None, "test", ["en/test.parquet"]),
        ((), None, "train", ["de/train.jsonl.zst", "en/train-0.parquet"]),
        ((), "de", "dev", ["de/dev.json"]),
    ],
)
def test_the_rules_by_which_files_make_a_split(
    configs: tuple[dict[str, Any], ...], name: str | None, split: str, expected: list[str]
) -> None:
    assert (
        dataset_files.list_split_files(
            HubDataset("acme/rows", COMMIT, FILES, configs), name, split, "spec.dataset.split"
        )
        == expected
    )


def test_files_whose_names_tell_no_split_are_all_to_train_on() -> None:
    dataset = HubDataset("acme/rows", COMMIT, ("a.jsonl", "b/c.csv.gz", "picture.png"), ())
    assert dataset_files.list_split_files(dataset, None, "train", "spec.dataset.split") == ["a.jsonl", "b/c.csv.gz"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["training-set/test.jsonl", "training-set/train.jsonl"], ["training-set/train.jsonl"]),
        (["heldout.jsonl", "rows.jsonl"], ["rows.jsonl"]),
        (["dataset_dict.json", "train/data-00000-of-00001.arrow", "train/dataset_info.json", "train/state.json"],
         ["train/data-00000-of-00001.arrow"]),
    ],
)  # fmt: skip
def test_a_file_is_of_the_split_that_its_own_name_names(files: list[str], expected: list[str]) -> None:
    dataset = HubDataset("acme/rows", COMMIT, tuple(files), ())
    assert dataset_files.list_split_files(dataset, None, "train", "spec.dataset.split") == expected


def test_a_copy_in_a_bucket_is_read_as_its_card_says(bench: Workbench, caplog: pytest.LogCaptureFixture) -> None:
    card = "---\nconfigs: [{config_name: default, data_files: [{split: train, path: b/*}]}]\n---\n"
    store = bench.server.store()
    for key, text in {"README.md": card, "a/part.jsonl": jsonl(ROWS), "b/part.jsonl": '{"prompt": 1}\n'}.items():
        store.put_new(S3Uri(bench.bucket, f"data/{key}"), text.encode())
    job = bench.settings(
        dataset={
            "uri": f"s3://{bench.bucket}/data",
            "s3": {"endpoint": bench.server.endpoint},
            "secretRef": {"name": "s3-credentials"},
        }
    )
    with caplog.at_level(logging.INFO, "finetune_trainer"):
        (found,) = sources.list_files(job, sources.find_splits(job.job.spec.dataset)[0], 5)
    assert found.name == "b/part.jsonl"
    assert "1 of 2 data files are read; left out by their names: a/part.jsonl" in caplog.text


def test_several_configurations_must_be_chosen_from() -> None:
    dataset = HubDataset("acme/rows", COMMIT, FILES, (CONFIGS[0], CONFIGS[2]))
    with pytest.raises(Failure) as caught:
        dataset_files.list_split_files(dataset, None, "train", "spec.dataset.split")
    assert (caught.value.reason, caught.value.field) == (Reason.DATASET_NOT_FOUND, "spec.dataset.name")
    assert "choose one of en, all" in caught.value.message


@pytest.mark.parametrize(
    ("pattern", "files", "expected"),
    [
        ("**/*.jsonl", ["train.jsonl", "a/b.jsonl"], ["train.jsonl", "a/b.jsonl"]),
        ("*.jsonl", ["train.jsonl", "test/b.jsonl"], ["train.jsonl"]),
        ("data/*", ["data/a.jsonl", "data/sub/b.jsonl"], ["data/a.jsonl"]),
        ("./train.jsonl", ["train.jsonl"], ["train.jsonl"]),
        ("data/**/train-*.parquet", ["data/train-0.parquet", "data/x/train-1.parquet"], None),
        ("data/train-0000[0-1]*.parquet", ["data/train-00000-of-3.parquet", "data/train-00002-of-3.parquet"], None),
        ("a(1).jsonl", ["a(1).jsonl", "a1.jsonl"], ["a(1).jsonl"]),
    ],
)
def test_a_cards_pattern_matches_as_the_datasets_library_reads_it(
    pattern: str, files: list[str], expected: list[str] | None
) -> None:
    matched = dataset_files._match(files, [pattern])
    if expected is None:
        expected = [file for file in files if "00002" not in file]
    assert matched == expected


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("TrainData.jsonl", {"train"}),
        ("TestData.jsonl", {"test"}),
        ("tests/a.jsonl", {"test"}),
        ("evals.jsonl", {"test"}),
        ("trainset.csv", {"train"}),
        ("testset.csv", {"test"}),
        ("contest.jsonl", set()),
        ("Latest.jsonl", set()),
    ],
)
def test_a_name_tells_its_split(name: str, splits: set[str]) -> None:
    assert dataset_files._find_splits(name) == splits
