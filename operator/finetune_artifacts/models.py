"""Download models, which are directories written by ``save_pretrained`` and have no manifest."""

from collections.abc import Collection
from pathlib import Path, PurePosixPath

from finetune_api.uris import StorageUri
from finetune_artifacts.errors import ArtifactError, Fault
from finetune_artifacts.storage import ObjectInfo, ProgressCallback, Storage, ignore_progress, missing_object_error

MODEL_FILES = {".json", ".jsonl", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken"}
"""Endings of the files of a model that the trainer reads."""
CODE_FILES = {".py"}
"""Endings of the code that a model may bring, which is downloaded only if the user trusts it."""


def download_model(
    storage: Storage,
    uri: StorageUri,
    directory: Path,
    on_progress: ProgressCallback = ignore_progress,
    *,
    code: bool = False,
    skip: Collection[str] = (),
) -> None:
    """Download the files of a model: configuration, tokenizer and safetensors.

    Args:
        storage: The storage to download from.
        uri: Prefix of the model's objects.
        directory: Directory to write to; created if it does not exist.
        on_progress: Receives the number of bytes that have arrived, and the total.
        code: Download Python files too.
        skip: Names of files that are not needed.

    Raises:
        ArtifactError: As ``list_model_files``.
    """
    infos = list_model_files(storage, uri, code=code)
    directory.mkdir(parents=True, exist_ok=True)
    named_objects = [(info, _name_below(uri, info)) for info in infos]
    storage.download([(info, directory / name) for info, name in named_objects if name not in skip], on_progress)


def list_model_files(storage: Storage, uri: StorageUri, *, code: bool = False) -> list[ObjectInfo]:
    """List the objects directly below ``uri`` that belong to a model.

    Raises:
        ArtifactError: MODEL_NOT_FOUND without a config.json, MODEL_UNSUPPORTED without safetensors.
    """
    infos = {_name_below(uri, info): info for info in storage.list_objects(uri)}
    if "config.json" not in infos:
        raise missing_object_error(storage, uri.child("config.json"))
    endings = MODEL_FILES | CODE_FILES if code else MODEL_FILES
    names = [name for name in infos if "/" not in name and PurePosixPath(name).suffix in endings]
    if not any(name.endswith(".safetensors") for name in names):
        raise ArtifactError(
            storage.purpose,
            Fault.UNSAFE,
            f"{uri} has no *.safetensors file; found: {', '.join(sorted(infos)[:10])}: "
            "save the model with save_pretrained, which writes safetensors",
        )
    return [infos[name] for name in names]


def _name_below(uri: StorageUri, info: ObjectInfo) -> str:
    return info.uri.key[len(uri.key) + 1 if uri.key else 0 :]
