"""Select the files of a dataset split on the hub, from its card or, without a card, from their names."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from huggingface_hub import HfApi, HfFileSystem

from finetune_api.reasons import Reason
from finetune_trainer.hub import client
from finetune_trainer.runtime.failures import Failure

DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
COMPRESSED_SUFFIXES = (".gz", ".zst", ".zstd")
METADATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "readme.txt")
"""How the names of files end that describe rows, but have none."""
SAVED_METADATA = re.compile(r"state\.json|cache-\w+\.arrow")
"""Names of files without rows beside ``dataset_info.json``: one of ``save_to_disk``, and the library's caches."""


def _compile_words(words: str) -> re.Pattern[str]:
    """Compile a pattern of words between any characters but letters."""
    return re.compile(rf"(?<![^\W\d_])({words})(?![^\W\d_])")


SPLIT_WORDS = {
    "train": _compile_words("train|training|trainset"),
    "validation": _compile_words("validation|valid|dev|val|devset|valset"),
    "test": _compile_words("tests?|testing|evals?|evaluation|testset|evalset"),
    "held-out": _compile_words("(held|hold)[-_. ]?out"),
}
"""Words in a name that name a split, as in the datasets library, which does not know held-out rows."""


@dataclass(frozen=True)
class HubDataset:
    """A dataset at one commit: its files, and the configurations that its card declares."""

    repo: str
    commit: str
    files: tuple[str, ...]
    configs: tuple[dict[str, Any], ...]
    copy: str = ""
    """Address of a copy outside the hub, for messages."""


def resolve_dataset(api: HfApi, repo: str, revision: str | None) -> HubDataset:
    """Return the dataset at the commit that ``revision`` (None: the default branch) names now.

    Raises:
        Failure: The dataset does not exist, is not accessible, or the hub does not answer.
    """
    info = client.call_hub(api, client.DATASET, repo, revision, lambda: api.dataset_info(repo, revision=revision))
    card = info.card_data
    configs = (card.get("configs") if card else None) or []
    return HubDataset(
        repo,
        info.sha or "",
        tuple(sibling.rfilename for sibling in info.siblings or []),
        tuple(config for config in configs if isinstance(config, dict)),
    )


def download_file(api: HfApi, dataset: HubDataset, name: str, directory: Path) -> Path:
    """Download one file into ``directory``."""
    return Path(
        client.call_hub(
            api,
            client.DATASET,
            dataset.repo,
            dataset.commit,
            lambda: api.hf_hub_download(
                dataset.repo, name, repo_type="dataset", revision=dataset.commit, local_dir=directory
            ),
        )
    )


def open_file(api: HfApi, dataset: HubDataset, name: str) -> BinaryIO:
    """Open one file, which is downloaded in blocks while it is read.

    Raises:
        Failure: The hub refuses or does not answer.
    """
    system = HfFileSystem(endpoint=api.endpoint, token=api.token, skip_instance_cache=True)
    path = f"datasets/{dataset.repo}@{dataset.commit}/{name}"

    def open_and_probe() -> BinaryIO:
        file = system.open(path, "rb", block_size=1024 * 1024)
        file.read(1)  # the hub refuses only when the first byte is read
        file.seek(0)
        return cast(BinaryIO, file)

    return client.call_hub(api, client.DATASET, dataset.repo, dataset.commit, open_and_probe)


def list_split_files(dataset: HubDataset, name: str | None, split: str, path: str) -> list[str]:
    """List the files of a split, sorted.

    Args:
        dataset: The dataset at its commit.
        name: The configuration; None for the default one.
        split: The name of the split.
        path: The field of the spec that named the split, for messages.

    Raises:
        Failure: DATASET_NOT_FOUND: there is no such configuration or split.
    """
    files = list_data_files(dataset.files)
    config = _select_config(dataset, name, path)
    if config is None and name is not None:
        files = [file for file in files if file.startswith(f"{name}/")]
        if not files:
            raise _not_found(dataset, f"has no configuration {name!r}", "spec.dataset.name")
    elif config is not None and config.get("data_files"):
        declared = _patterns_by_split(config["data_files"])
        if split not in declared:
            remedy = ". Write the address of the files of one split" if dataset.copy else ""
            raise _not_found(dataset, f"has no split {split!r}; its splits are: {', '.join(declared)}{remedy}", path)
        return sorted(_match(files, declared[split]))
    elif config is not None and config.get("data_dir"):
        files = [file for file in files if file.startswith(f"{str(config['data_dir']).strip('/')}/")]
    matching = [file for file in files if _names_split(file, split)]
    if not matching and split == "train" and not any(_find_splits(file) - {"held-out"} for file in files):
        matching = [file for file in files if not _find_splits(file)]
    if not matching:
        raise _not_found(dataset, f"has no file of the split {split!r}", path)
    return sorted(matching)


def select_by_names(files: list[str], *, held_out: bool = False) -> list[str]:
    """Return the files to train on, as far as the names of files and directories tell.

    If none of them is named as rows to train on, all that are not named as another split are read, or else all.

    Args:
        files: The files, relative to the dataset.
        held_out: Return the files of the held-out rows instead.
    """
    splits = {file: _find_splits(file) for file in files}
    train = [file for file in files if "train" in splits[file]]
    others = [file for file in files if splits[file] and file not in train]
    if held_out:
        return others if train and others else files
    return (train if train and others else [file for file in files if file not in others]) or files


def list_data_files(names: Iterable[str]) -> list[str]:
    """Return the files with rows among all files of a dataset."""
    present = set(names)
    return [
        name
        for name in names
        if is_data_file(name)
        and not (
            SAVED_METADATA.fullmatch(PurePosixPath(name).name)
            and str(PurePosixPath(name).with_name("dataset_info.json")) in present
        )
    ]


def is_data_file(name: str) -> bool:
    """Return whether the name is that of a file with rows."""
    if is_hidden(name):
        return False
    lower = name.lower()
    for suffix in COMPRESSED_SUFFIXES:
        lower = lower.removesuffix(suffix)
    return lower.endswith(DATA_SUFFIXES) and not lower.endswith(METADATA)


def is_hidden(name: str) -> bool:
    """Return whether a file is a copy that an editor or a system made, such as those in .ipynb_checkpoints/."""
    return any(part.startswith((".", "__")) for part in name.split("/"))


def _select_config(dataset: HubDataset, name: str | None, path: str) -> dict[str, Any] | None:
    if not dataset.configs:
        return None
    by_name = {str(config.get("config_name", "default")): config for config in dataset.configs}
    if name is not None:
        if name not in by_name:
            raise _not_found(
                dataset, f"has no configuration {name!r}; it has: {', '.join(by_name)}", "spec.dataset.name"
            )
        return by_name[name]
    chosen = [config for config in dataset.configs if config.get("default")] or [
        config for key, config in by_name.items() if key == "default" or len(by_name) == 1
    ]
    if chosen:
        return chosen[0]
    problem = "has several configurations"
    if dataset.copy:
        raise _not_found(dataset, f"{problem}: {'; '.join(_list_addresses(dataset, by_name))}", path)
    raise _not_found(dataset, f"{problem}: choose one of {', '.join(by_name)}", "spec.dataset.name")


def _list_addresses(dataset: HubDataset, configs: dict[str, dict[str, Any]]) -> list[str]:
    """Say for each configuration of a copy which address has its files and no others."""
    files = list_data_files(dataset.files)
    return [
        f"for {name} write {dataset.copy}/{place}"
        if (place := _find_place(_list_config_files(config, files), files))
        else f"for {name} copy its files into a directory of their own"
        for name, config in configs.items()
    ]


def _list_config_files(config: dict[str, Any], files: list[str]) -> list[str]:
    """Return the files of all splits of a configuration."""
    if config.get("data_files"):
        patterns = [pattern for declared in _patterns_by_split(config["data_files"]).values() for pattern in declared]
        return _match(files, patterns)
    directory = str(config.get("data_dir") or "").strip("/")
    return [file for file in files if file.startswith(f"{directory}/")]


def _find_place(own: list[str], files: list[str]) -> str:
    """Return the file or the directory that has these files and no others; empty if there is none."""
    directory = os.path.commonpath([str(PurePosixPath(file).parent) for file in own]) if own else ""
    if [file for file in files if file.startswith(f"{directory}/")] == own:
        return directory
    return own[0] if len(own) == 1 else ""


def _patterns_by_split(data_files: Any) -> dict[str, list[str]]:
    """Return the patterns of each split that a card declares."""
    if isinstance(data_files, str):
        return {"train": [data_files]}
    declared: dict[str, list[str]] = {}
    for item in data_files if isinstance(data_files, list) else [data_files]:
        split, path = (
            (str(item.get("split", "train")), item.get("path", [])) if isinstance(item, dict) else ("train", item)
        )
        declared.setdefault(split, []).extend([path] if isinstance(path, str) else path or [])
    return declared


def _match(files: Iterable[str], patterns: list[str]) -> list[str]:
    """Return the files that match a pattern of a card; ``*`` is a part of a name, ``**`` may have directories."""
    compiled = [re.compile(_translate(pattern.removeprefix("./"))) for pattern in patterns]
    return [file for file in files if any(pattern.fullmatch(file) for pattern in compiled)]


def _translate(pattern: str) -> str:
    """Return the regular expression of a pattern, as fsspec's ``glob`` and so the datasets library reads it."""
    meanings = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.findall(r"\*\*/|\*\*|\*|\?|\[[^]]+\]|.", pattern)
    return "".join(
        meanings.get(part) or (part.replace("[!", "[^") if len(part) > 1 else re.escape(part)) for part in parts
    )


def _names_split(file: str, split: str) -> bool:
    """Return whether a file is named as one of a split: by its own name, or else by its nearest directory."""
    if split in SPLIT_WORDS:
        return split in _find_splits(file)
    words = _compile_words(re.escape(split.lower()))
    for part in reversed(PurePosixPath(file.lower()).parts):
        if words.search(part) or _read_splits(part):
            return words.search(part) is not None
    return False


def _find_splits(file: str) -> set[str]:
    """Return the splits that a file's own name names, or else its nearest directory."""
    named = (_read_splits(part) for part in reversed(PurePosixPath(_split_words(file)).parts))
    return next((splits for splits in named if splits), set())


def _split_words(file: str) -> str:
    """Return a name in lower case, with a hyphen between words such as those of ``TestData``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", file).lower()


def _read_splits(part: str) -> set[str]:
    return {split for split, words in SPLIT_WORDS.items() if words.search(part)}


def _not_found(dataset: HubDataset, problem: str, path: str) -> Failure:
    file_names = ", ".join(dataset.files[:10]) or "none"
    return Failure(
        Reason.DATASET_NOT_FOUND, f"{dataset.copy or f'hf://{dataset.repo}'} {problem} (its files: {file_names})", path
    )
