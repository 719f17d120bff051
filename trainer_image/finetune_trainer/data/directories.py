"""Select the data files of a directory: one of ``save_to_disk``, a copy of a hub repository, or any other."""

import re
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

import yaml

from finetune_api.reasons import Reason
from finetune_trainer.hub.dataset_files import HubDataset, is_data_file, list_split_files, select_by_names
from finetune_trainer.runtime.failures import Failure

SAVED_SHARD = re.compile(r"(.*/)?(data-\d+-of-\d+|dataset)\.arrow")
"""Files with rows that ``save_to_disk`` writes; other Arrow files of the library are caches."""
SNAPSHOT_FILES = (".gitattributes", ".cache/huggingface")
"""Names of files that the hub's client leaves in a copy of a repository."""


def select_files(
    names: Iterable[str], uri: str, split: str, split_field: str, read_card: Callable[[], str] = lambda: ""
) -> list[str]:
    """Return the files with rows, in the order in which they are read.

    Args:
        names: All files of the directory, relative to it.
        uri: The directory's address, for messages.
        split: The split to read, if the directory has splits.
        split_field: The field of the spec for messages.
        read_card: Reads README.md of a hub snapshot.

    Raises:
        Failure: DATASET_NOT_FOUND if the directory has other splits.
    """
    sorted_names = sorted(names)
    if "dataset_dict.json" in sorted_names:
        return _select_split(sorted_names, uri, split, split_field)
    if "state.json" in sorted_names and "dataset_info.json" in sorted_names:
        return [name for name in sorted_names if SAVED_SHARD.fullmatch(name)]
    if any(name.startswith(SNAPSHOT_FILES) for name in sorted_names):
        dataset = HubDataset(uri, "", tuple(sorted_names), _read_configs(read_card()), uri)
        return list_split_files(dataset, None, split, split_field)
    return select_by_names([name for name in sorted_names if is_data_file(name)], split)


def _select_split(names: list[str], uri: str, split: str, split_field: str) -> list[str]:
    """Return the files of a split of a DatasetDict."""
    shards = [name for name in names if SAVED_SHARD.fullmatch(name) and "/" in name]
    splits = list(dict.fromkeys(PurePosixPath(name).parts[0] for name in shards))
    if split not in splits:
        split_names = ", ".join(splits) or "none"
        raise Failure(
            Reason.DATASET_NOT_FOUND,
            f"{uri} is a DatasetDict without a split {split!r}; its splits are: {split_names}. Write {uri}/SPLIT",
            split_field,
        )
    return [name for name in shards if PurePosixPath(name).parts[0] == split]


def _read_configs(card: str) -> tuple[dict[str, object], ...]:
    """Return the configurations that the YAML at the beginning of a dataset card declares."""
    sections = card.split("---", 2)
    try:
        header = yaml.safe_load(sections[1]) if len(sections) == 3 and not sections[0].strip() else None
    except yaml.YAMLError:
        header = None
    configs = header.get("configs") if isinstance(header, dict) else None
    return tuple(config for config in configs or [] if isinstance(config, dict))
