"""A directory of data is read as what wrote it: save_to_disk, a snapshot of the hub, or people."""

import pytest

from finetune_api.reasons import Reason
from finetune_trainer.data.directories import select_files
from finetune_trainer.runtime.failures import Failure

pytestmark = pytest.mark.unit

SAVED = ["cache-1f.arrow", "data-00000-of-00002.arrow", "data-00001-of-00002.arrow", "dataset_info.json", "state.json"]
DICT = ["dataset_dict.json", *(f"{split}/{name}" for split in ("test", "train") for name in SAVED)]
SNAPSHOT = [".gitattributes", "README.md", "data/test-0.parquet", "data/train-0.parquet", "extra/more.parquet"]
CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: extra/*\n---\n# Rows\n"


def select(names: list[str], split: str = "train", card: str = "") -> list[str]:
    return select_files(names, "pvc://rows/all", split, "spec.dataset.uri", lambda: card)


@pytest.mark.parametrize(
    ("names", "card", "expected"),
    [
        (SAVED, "", ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]),
        (DICT, "", ["train/data-00000-of-00002.arrow", "train/data-00001-of-00002.arrow"]),
        (SNAPSHOT, "", ["data/train-0.parquet"]),
        (SNAPSHOT, CARD, ["extra/more.parquet"]),
        (SNAPSHOT, "---\n[broken\n---\n", ["data/train-0.parquet"]),
        (["b.jsonl", "a/c.csv.gz", "notes.md", "state.json"], "", ["a/c.csv.gz", "b.jsonl", "state.json"]),
        (["data/test.jsonl", "data/train.jsonl", "more.jsonl", "val.csv"], "", ["data/train.jsonl"]),
        (["training-1.jsonl", "training-2.jsonl"], "", ["training-1.jsonl", "training-2.jsonl"]),
        (["eval-rows.jsonl", "more.jsonl"], "", ["more.jsonl"]),
        (["data.jsonl", "test.jsonl"], "", ["data.jsonl"]),
        (["test2.jsonl", "train1.jsonl"], "", ["train1.jsonl"]),
        (["eval-1.jsonl", "test.jsonl"], "", ["eval-1.jsonl", "test.jsonl"]),
        (["contest.jsonl", "latest.jsonl", "prüftest.jsonl"], "", ["contest.jsonl", "latest.jsonl", "prüftest.jsonl"]),
        (["held_out.jsonl", "heldout.jsonl", "hold-out.jsonl", "rows.jsonl"], "", ["rows.jsonl"]),
        (["heldout.jsonl", "train.jsonl"], "", ["train.jsonl"]),
        (["training-set/test.jsonl", "training-set/train.jsonl"], "", ["training-set/train.jsonl"]),
        (["test-set/a.jsonl", "train-set/a.jsonl", "train-set/dev/b.jsonl"], "", ["train-set/a.jsonl"]),
        (
            [".ipynb_checkpoints/a-checkpoint.jsonl", "__MACOSX/._a.jsonl", "._a.jsonl", "a.jsonl"],
            "",
            ["a.jsonl"],
        ),
    ],
)
def test_the_files_of_the_wanted_split_are_read(names: list[str], card: str, expected: list[str]) -> None:
    assert select(names, card=card) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["test.jsonl", "train.jsonl"], ["test.jsonl"]),
        (["more.jsonl", "valid.jsonl"], ["more.jsonl", "valid.jsonl"]),
    ],
)
def test_held_out_rows_are_not_read_from_files_to_train_on(names: list[str], expected: list[str]) -> None:
    assert select_files(names, "pvc://rows/all", "train", "spec.dataset.validation.uri", held_out=True) == expected


def below(directory: str, names: list[str]) -> list[str]:
    return [f"{directory}/{name}" for name in names]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (below("my", SAVED), below("my", ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"])),
        (below("a/my", DICT), below("a/my/train", ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"])),
        (below("test", SAVED) + below("train", SAVED), below("train", [SAVED[1], SAVED[2]])),
    ],
)
def test_the_only_dataset_of_save_to_disk_below_a_directory_is_read(names: list[str], expected: list[str]) -> None:
    assert select(names) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (below("a", SAVED) + below("b", DICT), "save_to_disk in a/, b/: write the address of one dataset, such as"),
        ([*below("a", SAVED), "more.jsonl"], "save_to_disk in a/ and the files more.jsonl: write the address of one"),
    ],
)
def test_several_datasets_below_a_directory_are_named(names: list[str], message: str) -> None:
    with pytest.raises(Failure) as caught:
        select(names)
    assert (caught.value.reason, caught.value.field) == (Reason.DATASET_NOT_FOUND, "spec.dataset.uri")
    assert message in caught.value.message
    assert "pvc://rows/all/a" in caught.value.message


CONFIGS = """---
configs:
- {config_name: en, data_files: en/*.jsonl}
- {config_name: de, data_dir: de}
- {config_name: fr, data_files: "mixed/fr-*"}
- {config_name: it, data_files: "mixed/it-*"}
---
"""


@pytest.mark.parametrize("left_by_the_client", [[], [".gitattributes"]])
def test_of_a_copy_with_several_configurations_one_must_be_chosen_by_its_address(left_by_the_client: list[str]) -> None:
    data = ["de/train.jsonl", "en/test.jsonl", "en/train.jsonl", "mixed/fr-0.csv", "mixed/it-0.csv", "mixed/it-1.csv"]
    with pytest.raises(Failure) as caught:
        select([*left_by_the_client, "README.md", *data], card=CONFIGS)
    assert (caught.value.reason, caught.value.field) == (Reason.DATASET_NOT_FOUND, "spec.dataset.uri")
    assert (
        "has several configurations: for en write pvc://rows/all/en; for de write pvc://rows/all/de; "
        "for fr write pvc://rows/all/mixed/fr-0.csv; for it copy its files into a directory of their own"
    ) in caught.value.message


def test_a_card_is_followed_in_a_directory_without_traces_of_the_client() -> None:
    assert select(["README.md", "extra/more.parquet", "old.parquet"], card=CARD) == ["extra/more.parquet"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (DICT, "pvc://rows/all is a DatasetDict without a split 'dev'; its splits are: test, train"),
        (SNAPSHOT, "pvc://rows/all has no file of the split 'dev'"),
    ],
)
def test_a_split_that_is_not_there_is_named(names: list[str], message: str) -> None:
    with pytest.raises(Failure) as caught:
        select(names, "dev")
    assert caught.value.reason is Reason.DATASET_NOT_FOUND
    assert message in caught.value.message
