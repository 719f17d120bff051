"""Select the files of a dataset split on the hub, from its card or, without a card, from their names."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.utils._paths import filter_repo_objects

from finetune_api.reasons import Reason
from finetune_trainer.hub import client
from finetune_trainer.runtime.failures import Failure

DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
COMPRESSED_SUFFIXES = (".gz", ".zst", ".zstd")
SPLIT_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in a file's name that name its split, as in the datasets library."""


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
    files = [file for file in dataset.files if is_data_file(file)]
    config = _select_config(dataset, name)
    if config is None and name is not None:
        files = [file for file in files if file.startswith(f"{name}/")]
        if not files:
            raise _not_found(dataset, f"has no configuration {name!r}", "spec.dataset.name")
    elif config is not None and config.get("data_files"):
        declared = _patterns_by_split(config["data_files"])
        if split not in declared:
            raise _not_found(dataset, f"has no split {split!r}; its splits are: {', '.join(declared)}", path)
        return sorted(cast(Iterable[str], filter_repo_objects(files, allow_patterns=declared[split])))
    elif config is not None and config.get("data_dir"):
        files = [file for file in files if file.startswith(f"{str(config['data_dir']).strip('/')}/")]
    matching = [file for file in files if _names_split(file, split)]
    if (
        not matching
        and split == "train"
        and not any(_names_split(file, keyword) for file in files for keyword in SPLIT_KEYWORDS)
    ):
        matching = files
    if not matching:
        raise _not_found(dataset, f"has no file of the split {split!r}", path)
    return sorted(matching)


def select_by_names(files: list[str], split: str) -> list[str]:
    """Return the files of a split if the files' names tell splits apart, else all of them."""
    named = [file for file in files if _names_split(file, split)]
    others = any(_names_split(file, other) for file in files if file not in named for other in SPLIT_KEYWORDS)
    return named if named and others else files


def is_data_file(name: str) -> bool:
    """Return whether the name is that of a file with rows."""
    if any(part.startswith((".", "__")) for part in name.split("/")):
        return False  # copies that editors and systems make, such as .ipynb_checkpoints/ and __MACOSX/
    lower = name.lower()
    for suffix in COMPRESSED_SUFFIXES:
        lower = lower.removesuffix(suffix)
    return lower.endswith(DATA_SUFFIXES) and not lower.endswith(
        ("dataset_infos.json", "dataset_info.json", "readme.txt")
    )


def _select_config(dataset: HubDataset, name: str | None) -> dict[str, Any] | None:
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
    if not chosen:
        raise _not_found(
            dataset, f"has several configurations: choose one of {', '.join(by_name)}", "spec.dataset.name"
        )
    return chosen[0]


def _patterns_by_split(data_files: Any) -> dict[str, list[str]]:
    """Return the patterns of each split that a card declares."""
    if isinstance(data_files, str):
        return {"train": [data_files]}
    declared: dict[str, list[str]] = {}
    for item in data_files:
        split, path = (
            (str(item.get("split", "train")), item.get("path", [])) if isinstance(item, dict) else ("train", item)
        )
        declared.setdefault(split, []).extend([path] if isinstance(path, str) else path)
    return declared


def _names_split(file: str, split: str) -> bool:
    words = "|".join(SPLIT_KEYWORDS.get(split, (re.escape(split.lower()),)))
    return re.search(rf"(^|[^a-z0-9])({words})([^a-z0-9]|$)", file.lower()) is not None


def _not_found(dataset: HubDataset, problem: str, path: str) -> Failure:
    file_names = ", ".join(dataset.files[:10]) or "none"
    return Failure(
        Reason.DATASET_NOT_FOUND, f"{dataset.copy or f'hf://{dataset.repo}'} {problem} (its files: {file_names})", path
    )
