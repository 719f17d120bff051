"""Select the data files of a directory: one of ``save_to_disk``, a copy of a hub repository, or any other."""

import re
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

import yaml

from finetune_api.reasons import Reason
from finetune_trainer.hub.dataset_files import (
    HubDataset,
    is_hidden,
    list_data_files,
    list_split_files,
    select_by_names,
)
from finetune_trainer.runtime.failures import Failure

SAVED_SHARD = re.compile(r"(.*/)?(data-\d+-of-\d+|dataset)\.arrow")
"""Files with rows that ``save_to_disk`` writes; other Arrow files of the library are caches."""
SNAPSHOT_FILES = (".gitattributes", ".cache/huggingface")
"""Names of files that the hub's client leaves in a copy of a repository."""


def select_files(
    names: Iterable[str],
    uri: str,
    split: str,
    split_field: str,
    read_card: Callable[[], str] = lambda: "",
    *,
    held_out: bool = False,
) -> list[str]:
    """Return the files with rows, in the order in which they are read.

    Args:
        names: All files of the directory, relative to it.
        uri: The directory's address, for messages.
        split: The split to read, if the directory has splits.
        split_field: The field of the spec for messages.
        read_card: Reads README.md, which is the dataset card of a copy of a hub repository.
        held_out: The rows are held out, so files that are named as rows to train on are not theirs.

    Raises:
        Failure: DATASET_NOT_FOUND if the directory has other splits, or several datasets.
    """
    sorted_names = sorted(names)
    if "dataset_dict.json" in sorted_names:
        return _select_split(sorted_names, uri, split, split_field)
    if "state.json" in sorted_names and "dataset_info.json" in sorted_names:
        return [name for name in sorted_names if SAVED_SHARD.fullmatch(name)]
    configs = _read_configs(read_card()) if "README.md" in sorted_names else ()
    saved = [] if configs else _find_saved(sorted_names)
    if saved:
        directory = _choose_saved(sorted_names, saved, uri, split_field, held_out=held_out)
        inner = [name.removeprefix(directory) for name in sorted_names if name.startswith(directory)]
        address = f"{uri.rstrip('/')}/{directory.rstrip('/')}"
        return [directory + name for name in select_files(inner, address, split, split_field)]
    if configs or any(name.startswith(SNAPSHOT_FILES) for name in sorted_names):
        return list_split_files(
            HubDataset(uri, "", tuple(sorted_names), configs, uri.rstrip("/")), None, split, split_field
        )
    return select_by_names(list_data_files(sorted_names), held_out=held_out)


def _find_saved(names: list[str]) -> list[str]:
    """Return the subdirectories that ``save_to_disk`` wrote, each with a slash at its end."""
    present = set(names)
    dicts = [name.removesuffix("dataset_dict.json") for name in names if name.endswith("/dataset_dict.json")]
    datasets = [
        name.removesuffix("state.json")
        for name in names
        if name.endswith("/state.json") and f"{name.removesuffix('state.json')}dataset_info.json" in present
    ]
    splits = [directory for directory in datasets if directory.startswith(tuple(dicts))]
    return sorted(directory for directory in {*dicts, *datasets}.difference(splits) if not is_hidden(directory))


def _choose_saved(names: list[str], saved: list[str], uri: str, split_field: str, *, held_out: bool) -> str:
    """Return the only subdirectory with a dataset, or the only one whose name is that of the split."""
    others = [name for name in list_data_files(names) if not name.startswith(tuple(saved))]
    chosen = select_by_names(saved, held_out=held_out)
    if len(chosen) == 1 and not others:
        return chosen[0]
    beside = f" and the files {', '.join(others[:10])}" if others else ""
    raise Failure(
        Reason.DATASET_NOT_FOUND,
        f"{uri} has datasets of save_to_disk in {', '.join(saved[:10])}{beside}: write the address of one dataset, "
        f"such as {uri.rstrip('/')}/{saved[0].rstrip('/')}",
        split_field,
    )


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
    return tuple(config for config in (configs if isinstance(configs, list) else []) if isinstance(config, dict))
