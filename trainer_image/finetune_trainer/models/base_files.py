"""Read or download the files of the base model, wherever they are: hub, S3 or claim.

The preflight reads configuration and headers only; the training downloads everything.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from finetune_api.reasons import Reason
from finetune_api.uris import FileUri, HfUri, PvcUri, S3Uri, parse_uri
from finetune_artifacts.errors import Purpose
from finetune_artifacts.models import download_model, list_model_files
from finetune_artifacts.objects import read_object
from finetune_artifacts.ranges import RemoteFile
from finetune_artifacts.s3 import S3Storage
from finetune_artifacts.s3_transfer import read_unchanged_range
from finetune_artifacts.safetensors import Tensor, read_file_header, read_object_header
from finetune_artifacts.storage import ObjectInfo, ProgressCallback
from finetune_trainer.hub import client
from finetune_trainer.models import model_cache, remote_code, weight_files
from finetune_trainer.models.model_cache import RemoteModel
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.settings import Settings

FIELD = "spec.model.uri"


@dataclass(frozen=True)
class ModelMetadata:
    """What is known of a model without its weights: configuration, tensors, tokenizer, and commit."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    has_tokenizer: bool
    has_chat_template: bool
    commit: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _HubFiles:
    """A model of the hub at its commit: its JSON files, and the weights files that are loaded."""

    api: HfApi
    model: client.HubModel
    read: Callable[[str], dict[str, Any]]
    weights: weight_files.WeightFiles

    @property
    def unloaded(self) -> list[str]:
        """Return the weights files that are not loaded."""
        return weight_files.list_unloaded(self.weights, self.model.files)


@dataclass(frozen=True)
class _S3Files:
    """A model in S3: its objects by file name, its JSON files, and the weights files that are loaded."""

    store: S3Storage
    objects: dict[str, ObjectInfo]
    read: Callable[[str], dict[str, Any]]
    weights: weight_files.WeightFiles

    @property
    def unloaded(self) -> list[str]:
        """Return the weights files that are not loaded."""
        return weight_files.list_unloaded(self.weights, self.objects)


def canonical_name(settings: Settings) -> str:
    """Return the base model's name in manifests: ``org/name`` of the hub, or its address."""
    uri = settings.job.spec.model.uri
    parsed = parse_uri(uri)
    return parsed.repo if isinstance(parsed, HfUri) else uri.rstrip("/")


def read_metadata(settings: Settings, patience_seconds: float) -> ModelMetadata:
    """Read the configuration and the safetensors headers.

    Raises:
        Failure: There is no such model, or it cannot be used.
        ArtifactError: S3 fails or refuses.
    """
    parsed = parse_uri(settings.job.spec.model.uri)
    if isinstance(parsed, HfUri):
        hub = _open_hub_files(settings, parsed.repo)
        tensors = client.read_tensors(hub.api, hub.model)
        weight_files.check_indexed_tensors(hub.weights, tensors, f"hf://{parsed.repo}")
        return _make_metadata(set(hub.model.files), hub.read, tensors, hub.weights, hub.model.commit)
    if isinstance(parsed, S3Uri):
        s3 = _open_s3_files(settings, parsed, patience_seconds)
        tensors = weight_files.join_headers(
            s3.weights, lambda name: read_object_header(s3.store, s3.objects[name]), str(parsed)
        )
        return _make_metadata(set(s3.objects), s3.read, tensors, s3.weights)
    return inspect_directory(local_directory(settings), settings.job.spec.model.uri)


def download_base(
    settings: Settings, directory: Path, patience_seconds: float, report: ProgressCallback
) -> tuple[Path, str | None]:
    """Download the model, and return its local directory and, for a hub model, its commit.

    Args:
        settings: The settings of the attempt.
        directory: Directory for the files. A model on a claim is not copied, and a workstation uses the hub's cache.
        patience_seconds: How long requests to S3 are repeated while it does not answer.
        report: Called with the bytes that have arrived, and the total.

    Raises:
        Failure: There is no such model, or it cannot be used.
        ArtifactError: S3 fails or refuses.
    """
    model, commit = _download(settings, directory, patience_seconds, report)
    metadata = inspect_directory(model, settings.job.spec.model.uri)
    remote_code.check_remote_code(metadata.config, settings.job.spec.model)
    return model, commit


def _download(
    settings: Settings, directory: Path, patience_seconds: float, report: ProgressCallback
) -> tuple[Path, str | None]:
    spec = settings.job.spec.model
    parsed = parse_uri(spec.uri)
    if settings.model_cache and settings.cached_model:
        return model_cache.open_model(settings.model_cache, settings.cached_model)
    if isinstance(parsed, PvcUri | FileUri):
        return local_directory(settings), None
    if isinstance(parsed, S3Uri):
        s3 = _open_s3_files(settings, parsed, patience_seconds)
        download_model(s3.store, parsed, directory, report, code=spec.trust_remote_code, skip=s3.unloaded)
        return directory, None
    assert isinstance(parsed, HfUri), "the model's address was checked"  # noqa: S101
    hub = _open_hub_files(settings, parsed.repo)
    target = None if settings.workstation else directory
    path = client.download_model(hub.api, hub.model, target, code=spec.trust_remote_code, skip=hub.unloaded)
    return path, hub.model.commit


def list_remote_model(settings: Settings, patience_seconds: float) -> RemoteModel:
    """List the files of a model that is downloaded into the cache.

    Raises:
        Failure: The hub refuses, does not answer, or has no such model.
        ArtifactError: S3 fails or refuses.
    """
    spec = settings.job.spec.model
    parsed = parse_uri(spec.uri)
    code = spec.trust_remote_code
    if isinstance(parsed, HfUri):
        hub = _open_hub_files(settings, parsed.repo)
        hub_files = client.list_model_files(hub.api, hub.model, code=code, skip=hub.unloaded)

        def read_hub(file: RemoteFile, start: int, length: int) -> bytes:
            return client.read_range(hub.api, hub.model, file.name, start, length)

        return RemoteModel(spec.uri, hub.api.endpoint, hub.model.commit, hub_files, read_hub)
    assert isinstance(parsed, S3Uri), "only downloaded models have a cache"  # noqa: S101
    s3 = _open_s3_files(settings, parsed, patience_seconds, code=code)

    def read_s3(file: RemoteFile, start: int, length: int) -> bytes:
        return read_unchanged_range(s3.store, s3.objects[file.name], start, length)

    skip = s3.unloaded
    files = [RemoteFile(name, info.size, info.etag) for name, info in s3.objects.items() if name not in skip]
    return RemoteModel(str(parsed), s3.store.endpoint, None, files, read_s3)


def _open_hub_files(settings: Settings, repo: str) -> _HubFiles:
    api = open_hub_client(settings)
    model = client.resolve_model(api, repo, settings.model_revision or settings.job.spec.model.revision)
    address, scratch = f"hf://{repo}", settings.scratch / "hub"
    read = _json_reader(lambda name: client.download_file(api, model, name, scratch).read_bytes(), address)
    return _HubFiles(api, model, read, weight_files.choose_weight_files(model.files, read, address))


def _open_s3_files(settings: Settings, uri: S3Uri, patience_seconds: float, *, code: bool = False) -> _S3Files:
    store = settings.store(Purpose.MODEL, patience_seconds)
    objects = {info.uri.key.rsplit("/", 1)[-1]: info for info in list_model_files(store, uri, code=code)}
    read = _json_reader(lambda name: read_object(store, objects[name].uri), str(uri))
    return _S3Files(store, objects, read, weight_files.choose_weight_files(objects, read, str(uri)))


def open_hub_client(settings: Settings) -> HfApi:
    """Open the hub's client, with the token of the Secret that the user named.

    Raises:
        Failure: The Secret has no token.
    """
    secret = settings.secret(settings.job.spec.model.secret_ref)
    return client.open_client(settings.hub_endpoint, secret, client.MODEL, signed_in=settings.workstation)


def local_directory(settings: Settings) -> Path:
    """Return the directory of a model on a claim or on the workstation.

    Raises:
        Failure: MODEL_NOT_FOUND if there is no model, SPEC_INVALID if the path leads out of the claim.
    """
    uri = settings.job.spec.model.uri
    parsed = parse_uri(uri)
    if isinstance(parsed, PvcUri):
        claim = (settings.mounts / "claims" / parsed.claim).resolve()
        directory = (claim / parsed.path).resolve()
        if not directory.is_relative_to(claim):
            raise Failure(Reason.SPEC_INVALID, f"{uri!r} leads out of the claim", FIELD)
    else:
        assert isinstance(parsed, FileUri), "the model's address was checked"  # noqa: S101
        directory = Path(parsed.path).expanduser()
    if not (directory / "config.json").is_file():
        names = sorted(entry.name for entry in directory.iterdir())[:10] if directory.is_dir() else None
        contents = f"found: {', '.join(names) or 'nothing'}" if names is not None else "there is no such directory"
        raise Failure(
            Reason.MODEL_NOT_FOUND,
            f"{uri} has no config.json ({contents}): it must be a directory as save_pretrained writes it",
            FIELD,
        )
    return directory


def inspect_directory(directory: Path, address: str) -> ModelMetadata:
    """Read the configuration and the headers of a model in a directory.

    Args:
        directory: The directory.
        address: The model's address for messages.

    Raises:
        Failure: The directory is not a model, its weights are pickled, or a file is missing or incomplete.
    """
    files = {entry.name for entry in directory.iterdir()}
    read = _json_reader(lambda name: (directory / name).read_bytes(), address)
    weights = weight_files.choose_weight_files(files, read, address)
    tensors = weight_files.join_headers(weights, lambda name: read_file_header(directory / name), address)
    return _make_metadata(files, read, tensors, weights)


def _json_reader(read: Callable[[str], bytes], address: str) -> Callable[[str], dict[str, Any]]:
    def read_json(name: str) -> dict[str, Any]:
        try:
            content = json.loads(read(name))
        except OSError as error:
            raise weight_files.unreadable(name, address, error) from error
        except ValueError as error:
            raise Failure(Reason.MODEL_UNSUPPORTED, f"{name} of {address} is not JSON: {error}", FIELD) from error
        return content if isinstance(content, dict) else {}

    return read_json


def _make_metadata(
    files: set[str],
    read: Callable[[str], dict[str, Any]],
    tensors: dict[str, Tensor],
    weights: weight_files.WeightFiles,
    commit: str | None = None,
) -> ModelMetadata:
    template = "chat_template.jinja" in files or "chat_template.json" in files
    if not template and "tokenizer_config.json" in files:
        template = bool(read("tokenizer_config.json").get("chat_template"))
    tokenizer = bool({"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"} & files)
    return ModelMetadata(read("config.json"), tensors, tokenizer, template, commit, tuple(weights.warnings))
