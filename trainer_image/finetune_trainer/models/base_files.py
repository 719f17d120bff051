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
from finetune_api.uris import HfUri, PvcUri, S3Uri, parse_uri
from finetune_artifacts.errors import Purpose
from finetune_artifacts.models import download_model, list_model_files
from finetune_artifacts.objects import read_object
from finetune_artifacts.safetensors import Tensor, read_file_header, read_object_header
from finetune_artifacts.storage import ProgressCallback
from finetune_trainer.hub import client
from finetune_trainer.models import remote_code
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.settings import Settings

FIELD = "spec.model.uri"


@dataclass(frozen=True)
class ModelMetadata:
    """Describe a model without its weights: configuration, tensors, tokenizer, and commit."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    has_tokenizer: bool
    has_chat_template: bool
    commit: str | None = None


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
        return _inspect_hub(settings, parsed.repo)
    if isinstance(parsed, S3Uri):
        return _inspect_s3(settings, parsed, patience_seconds)
    return _inspect_directory(local_directory(settings))


def download_base(
    settings: Settings, directory: Path, patience_seconds: float, report: ProgressCallback
) -> tuple[Path, str | None]:
    """Download the model, and return its local directory and, for a hub model, its commit.

    Args:
        settings: The settings of the attempt.
        directory: Where the files go. A model on a claim is used where it is, and a workstation uses its own cache.
        patience_seconds: How long S3 may be away before the download fails.
        report: Called with the bytes done and the bytes in all.

    Raises:
        Failure: There is no such model, or it cannot be used.
        ArtifactError: S3 fails or refuses.
    """
    model, commit = _download(settings, directory, patience_seconds, report)
    read_local_tensors(model, settings.job.spec.model.uri)
    config = _json_reader(lambda name: (model / name).read_bytes(), settings.job.spec.model.uri)("config.json")
    remote_code.check_remote_code(config, settings.job.spec.model)
    return model, commit


def _download(
    settings: Settings, directory: Path, patience_seconds: float, report: ProgressCallback
) -> tuple[Path, str | None]:
    spec = settings.job.spec.model
    parsed = parse_uri(spec.uri)
    if isinstance(parsed, PvcUri):
        return local_directory(settings), None
    if isinstance(parsed, S3Uri):
        store = settings.store(Purpose.MODEL, patience_seconds)
        download_model(store, parsed, directory, report, code=spec.trust_remote_code)
        return directory, None
    assert isinstance(parsed, HfUri), "the model's address was checked"  # noqa: S101
    api = open_hub_client(settings)
    commit = settings.model_revision or client.resolve_model(api, parsed.repo, spec.revision).commit
    target = None if settings.workstation else directory
    return client.download_model(api, parsed.repo, commit, target, code=spec.trust_remote_code), commit


def open_hub_client(settings: Settings) -> HfApi:
    """Open the hub's client, with the token of the Secret that the user named.

    Raises:
        Failure: The Secret has no token.
    """
    secret = settings.secret(settings.job.spec.model.secret_ref)
    return client.open_client(settings.hub_endpoint, secret, client.MODEL, signed_in=settings.workstation)


def local_directory(settings: Settings) -> Path:
    """Return the directory of a model on a claim.

    Raises:
        Failure: MODEL_NOT_FOUND if there is no model, SPEC_INVALID if the path leads out of the claim.
    """
    uri = settings.job.spec.model.uri
    parsed = parse_uri(uri)
    if not isinstance(parsed, PvcUri):
        raise Failure(
            Reason.SPEC_INVALID, f"{uri!r} must be hf://org/name, s3://bucket/prefix or pvc://claim/path", FIELD
        )
    claim = (settings.mounts / "claims" / parsed.claim).resolve()
    directory = (claim / parsed.path).resolve()
    if not directory.is_relative_to(claim):
        raise Failure(Reason.SPEC_INVALID, f"{uri!r} leads out of the claim", FIELD)
    if not (directory / "config.json").is_file():
        what = sorted(entry.name for entry in directory.iterdir())[:10] if directory.is_dir() else None
        found = (
            f"found: {', '.join(what) or 'nothing'}" if what is not None else "there is no such directory on the claim"
        )
        raise Failure(
            Reason.MODEL_NOT_FOUND,
            f"{uri} has no config.json ({found}): it must be a directory as save_pretrained writes it",
            FIELD,
        )
    return directory


def _inspect_hub(settings: Settings, repo: str) -> ModelMetadata:
    api = open_hub_client(settings)
    model = client.resolve_model(api, repo, settings.model_revision or settings.job.spec.model.revision)
    _require(set(model.files), f"hf://{repo}")
    directory = settings.scratch / "hub"
    read = _json_reader(lambda name: client.download_file(api, model, name, directory).read_bytes(), f"hf://{repo}")
    return _make_metadata(set(model.files), read, client.read_tensors(api, model), model.commit)


def _inspect_s3(settings: Settings, uri: S3Uri, patience_seconds: float) -> ModelMetadata:
    store = settings.store(Purpose.MODEL, patience_seconds)
    objects = {info.uri.key.rsplit("/", 1)[-1]: info for info in list_model_files(store, uri)}
    tensors: dict[str, Tensor] = {}
    for name, info in objects.items():
        if name.endswith(".safetensors"):
            tensors |= _header(lambda info=info: read_object_header(store, info), str(info.uri))  # type: ignore[misc]
    return _make_metadata(
        set(objects), _json_reader(lambda name: read_object(store, objects[name].uri), str(uri)), tensors
    )


def _inspect_directory(directory: Path) -> ModelMetadata:
    tensors = read_local_tensors(directory, str(directory))
    files = {entry.name for entry in directory.iterdir()}
    return _make_metadata(files, _json_reader(lambda name: (directory / name).read_bytes(), str(directory)), tensors)


def read_local_tensors(directory: Path, where: str) -> dict[str, Tensor]:
    """Read the headers of all weights in a directory.

    Raises:
        Failure: The directory is no model, its weights are pickled, or a file is incomplete.
    """
    files = {entry.name for entry in directory.iterdir()}
    _require(files, where)
    tensors: dict[str, Tensor] = {}
    for name in sorted(files):
        if name.endswith(".safetensors"):
            tensors |= _header(lambda name=name: read_file_header(directory / name), name)  # type: ignore[misc]
    return tensors


def _require(files: set[str], where: str) -> None:
    found = ", ".join(sorted(files)[:10])
    if "config.json" not in files:
        raise Failure(
            Reason.MODEL_NOT_FOUND, f"{where} has no config.json: it is not a transformers model; found: {found}", FIELD
        )
    if not any(name.endswith(".safetensors") for name in files):
        raise Failure(
            Reason.MODEL_UNSUPPORTED,
            f"{where} has no *.safetensors file; pickled weights can run code and are not loaded; "
            f"found: {found}. Save it with save_pretrained",
            FIELD,
        )


def _header(read: Callable[[], dict[str, Tensor]], name: str) -> dict[str, Tensor]:
    try:
        return read()
    except ValueError as error:
        raise Failure(
            Reason.MODEL_UNSUPPORTED, f"{name} is not a complete safetensors file: {error}. Upload it again", FIELD
        ) from error


def _json_reader(read: Callable[[str], bytes], where: str) -> Callable[[str], dict[str, Any]]:
    def read_json(name: str) -> dict[str, Any]:
        try:
            content = json.loads(read(name))
        except ValueError as error:
            raise Failure(Reason.MODEL_UNSUPPORTED, f"{name} of {where} is not JSON: {error}", FIELD) from error
        return content if isinstance(content, dict) else {}

    return read_json


def _make_metadata(
    files: set[str], read: Callable[[str], dict[str, Any]], tensors: dict[str, Tensor], commit: str | None = None
) -> ModelMetadata:
    template = "chat_template.jinja" in files or "chat_template.json" in files
    if not template and "tokenizer_config.json" in files:
        template = bool(read("tokenizer_config.json").get("chat_template"))
    tokenizer = bool({"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"} & files)
    return ModelMetadata(read("config.json"), tensors, tokenizer, template, commit)
