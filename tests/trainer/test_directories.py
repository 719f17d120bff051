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
        (["b.jsonl", "a/test.csv.gz", "notes.md", "state.json"], "", ["a/test.csv.gz", "b.jsonl", "state.json"]),
        (["data/test.jsonl", "data/train.jsonl", "more.jsonl", "val.csv"], "", ["data/train.jsonl"]),
        (["training-1.jsonl", "training-2.jsonl"], "", ["training-1.jsonl", "training-2.jsonl"]),
        (["eval-rows.jsonl", "more.jsonl"], "", ["eval-rows.jsonl", "more.jsonl"]),
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
