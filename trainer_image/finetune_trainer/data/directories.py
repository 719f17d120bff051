"""Select the data files of a directory by what wrote it: ``save_to_disk``, a snapshot of the hub, or people."""

import re
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

import yaml

from finetune_api.reasons import Reason
from finetune_trainer.hub.dataset_files import HubDataset, is_data_file, list_split_files
from finetune_trainer.runtime.failures import Failure

SAVED_SHARD = re.compile(r"(.*/)?(data-\d+-of-\d+|dataset)\.arrow")
"""Files with rows that ``save_to_disk`` writes; others of the library are caches."""
SNAPSHOT_FILES = (".gitattributes", ".cache/huggingface")
"""What the hub's client leaves in a copy of a repository."""


def select_files(
    names: Iterable[str], uri: str, split: str, split_field: str, read_card: Callable[[], str] = lambda: ""
) -> list[str]:
    """Return the files with rows, in the order in which they are read.

    Args:
        names: All files of the directory, relative to it.
        uri: The directory's address, for messages.
        split: The wanted split, where the directory has splits.
        split_field: The field of the spec for messages.
        read_card: Reads README.md of a hub snapshot.

    Raises:
        Failure: DATASET_NOT_FOUND if the directory has other splits.
    """
    found = sorted(names)
    if "dataset_dict.json" in found:
        return _select_split(found, uri, split, split_field)
    if "state.json" in found and "dataset_info.json" in found:
        return [name for name in found if SAVED_SHARD.fullmatch(name)]
    if any(name.startswith(SNAPSHOT_FILES) for name in found):
        dataset = HubDataset(uri, "", tuple(found), _read_configs(read_card()), uri)
        return list_split_files(dataset, None, split, split_field)
    return [name for name in found if is_data_file(name)]


def _select_split(names: list[str], uri: str, split: str, split_field: str) -> list[str]:
    """Return the files of a split of a DatasetDict."""
    shards = [name for name in names if SAVED_SHARD.fullmatch(name) and "/" in name]
    splits = list(dict.fromkeys(PurePosixPath(name).parts[0] for name in shards))
    if split not in splits:
        shown = ", ".join(splits) or "none"
        raise Failure(
            Reason.DATASET_NOT_FOUND,
            f"{uri} is a DatasetDict without a split {split!r}; its splits are: {shown}. Write {uri}/SPLIT",
            split_field,
        )
    return [name for name in shards if PurePosixPath(name).parts[0] == split]


def _read_configs(card: str) -> tuple[dict[str, object], ...]:
    """Return the configurations that the YAML at the beginning of a dataset card declares."""
    parts = card.split("---", 2)
    try:
        header = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except yaml.YAMLError:
        header = None
    configs = header.get("configs") if isinstance(header, dict) else None
    return tuple(config for config in configs or [] if isinstance(config, dict))
