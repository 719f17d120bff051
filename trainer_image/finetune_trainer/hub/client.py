"""Use the Hugging Face hub through its client: resolve revisions, list and download files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, RepoFile, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status, http_backoff

from finetune_api.reasons import Reason
from finetune_artifacts.ranges import RemoteFile
from finetune_artifacts.safetensors import Tensor
from finetune_trainer.runtime.failures import DISK_FULL_ERRNOS, Failure

T = TypeVar("T")


@dataclass(frozen=True)
class RepositoryKind:
    """The kind of a hub repository, models or datasets: words, spec fields and reasons for its messages."""

    noun: str
    section: str
    pages: str
    not_found: Reason
    denied: Reason
    alternatives: str


MODEL = RepositoryKind("model", "spec.model", "", Reason.MODEL_NOT_FOUND, Reason.MODEL_ACCESS_DENIED, "s3:// or pvc://")
DATASET = RepositoryKind(
    "dataset",
    "spec.dataset",
    "datasets/",
    Reason.DATASET_NOT_FOUND,
    Reason.DATASET_ACCESS_DENIED,
    "s3://, pvc:// or configmap://",
)
MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
"""Patterns of the files that a model needs."""
RANGE_SECONDS = 60.0
"""Seconds without data after which a request for a part of a file fails."""


@dataclass(frozen=True)
class HubModel:
    """A model at one commit, with the names of its files."""

    repo: str
    commit: str
    files: tuple[str, ...]


def resolve_model(api: HfApi, repo: str, revision: str | None) -> HubModel:
    """Return the model at the commit that ``revision`` (None: the default branch) names now.

    Raises:
        Failure: The model does not exist, is not accessible, or the hub does not answer.
    """
    info = call_hub(api, MODEL, repo, revision, lambda: api.model_info(repo, revision=revision))
    return HubModel(repo, info.sha or "", tuple(sibling.rfilename for sibling in info.siblings or []))


def read_tensors(api: HfApi, model: HubModel) -> dict[str, Tensor]:
    """Read names, types and shapes of all tensors from the headers alone.

    Raises:
        Failure: A safetensors file is damaged, or the hub refuses.
    """
    try:
        metadata = call_hub(
            api,
            MODEL,
            model.repo,
            model.commit,
            lambda: api.get_safetensors_metadata(model.repo, revision=model.commit),
        )
    except SafetensorsParsingError as error:
        raise Failure(
            Reason.MODEL_UNSUPPORTED,
            f"a safetensors file of hf://{model.repo} at revision {model.commit!r} cannot be read: it is damaged",
            "spec.model.uri",
        ) from error
    return {
        name: Tensor(info.dtype, tuple(info.shape))
        for file in metadata.files_metadata.values()
        for name, info in file.tensors.items()
    }


def download_file(api: HfApi, model: HubModel, name: str, directory: Path) -> Path:
    """Download one small file of a model."""
    return Path(
        call_hub(
            api,
            MODEL,
            model.repo,
            model.commit,
            lambda: api.hf_hub_download(model.repo, name, revision=model.commit, local_dir=directory),
        )
    )


def download_model(
    api: HfApi, model: HubModel, directory: Path | None, *, code: bool = False, skip: Sequence[str] = ()
) -> Path:
    """Download configuration, tokenizer and safetensors of a model.

    Args:
        api: The hub's client.
        model: The model at the commit to download.
        directory: Directory for the files; None for the user's own hub cache.
        code: Whether Python files are downloaded as well.
        skip: Names of files that are not needed.

    Raises:
        Failure: The hub refuses or does not answer.
    """
    patterns = [*MODEL_FILES, "*.py"] if code else MODEL_FILES
    return Path(
        call_hub(
            api,
            MODEL,
            model.repo,
            model.commit,
            lambda: api.snapshot_download(
                model.repo,
                revision=model.commit,
                local_dir=directory,
                allow_patterns=patterns,
                ignore_patterns=list(skip),
            ),
        )
    )


def list_model_files(api: HfApi, model: HubModel, *, code: bool, skip: Sequence[str] = ()) -> list[RemoteFile]:
    """List configuration, tokenizer, safetensors and, with ``code``, Python files, with their digests.

    Raises:
        Failure: The hub refuses or does not answer.
    """
    names = [name for name in model.files if "/" not in name and any(fnmatch(name, glob) for glob in MODEL_FILES)]
    names += [name for name in model.files if code and name.endswith(".py")]
    selected = [name for name in names if name not in skip]
    entries = call_hub(
        api,
        MODEL,
        model.repo,
        model.commit,
        lambda: api.get_paths_info(model.repo, selected, revision=model.commit),
    )
    return [
        RemoteFile(entry.path, entry.size, f"sha256:{entry.lfs.sha256}" if entry.lfs else f"git:{entry.blob_id}")
        for entry in entries
        if isinstance(entry, RepoFile)
    ]


def read_range(api: HfApi, model: HubModel, name: str, start: int, length: int) -> bytes:
    """Read a part of a file; the hub's client repeats a request that fails temporarily.

    Raises:
        Failure: The hub refuses, does not answer, or sends something else.
    """
    url = hf_hub_url(model.repo, name, revision=model.commit, endpoint=api.endpoint)
    headers = build_hf_headers(token=api.token) | {
        "Range": f"bytes={start}-{start + length - 1}",
        "Accept-Encoding": "identity",
    }

    def read() -> bytes:
        response = http_backoff("GET", url, headers=headers, timeout=RANGE_SECONDS, follow_redirects=True)
        hf_raise_for_status(response)
        return response.content

    content = call_hub(api, MODEL, model.repo, model.commit, read)
    if len(content) != length:
        raise Failure(
            Reason.DOWNLOAD_FAILED,
            f"the hub at {api.endpoint} sent {len(content)} bytes of {name} for a range of {length}: it does not serve "
            "ranges, or the file was cut off",
            "spec.model.uri",
        )
    return content


def call_hub(api: HfApi, kind: RepositoryKind, repo: str, revision: str | None, action: Callable[[], T]) -> T:
    """Run an action on a repository, and turn the client's exceptions into a Failure with a remedy.

    Raises:
        Failure: The repository does not exist or is not accessible, or the hub does not answer.
        OSError: The local disk is full.
    """
    page, field = f"{api.endpoint}/{kind.pages}{repo}", f"{kind.section}.uri"
    at_revision = f" at revision {revision!r}" if revision else ""
    try:
        return action()
    except GatedRepoError as error:
        raise Failure(
            kind.denied,
            f"hf://{repo} is a gated {kind.noun}: accept its licence at {page} with the account of the "
            f"token, and name a Secret with that HF_TOKEN in {kind.section}.secretRef",
            field,
        ) from error
    except RevisionNotFoundError as error:
        raise Failure(
            kind.not_found,
            f"hf://{repo} has no revision {revision!r}: see {page}/tree/main",
            f"{kind.section}.revision",
        ) from error
    except RepositoryNotFoundError as error:
        raise Failure(
            kind.not_found,
            f"hf://{repo} does not exist at {api.endpoint}, or is private: correct the name, or name a Secret "
            f"with an HF_TOKEN that may read it in {kind.section}.secretRef",
            field,
        ) from error
    except HfHubHTTPError as error:
        raise _http_failure(api, kind, repo, page, error) from error
    except (httpx2.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
            raise  # the disk is full, which is not an error of the hub
        raise Failure(
            Reason.DOWNLOAD_FAILED,
            f"the hub at {api.endpoint} does not answer for hf://{repo}{at_revision} ({type(error).__name__}): check "
            f"HF_ENDPOINT and the network, or use the {kind.noun} from {kind.alternatives}",
            field,
        ) from error


def _http_failure(api: HfApi, kind: RepositoryKind, repo: str, page: str, error: HfHubHTTPError) -> Failure:
    field = f"{kind.section}.uri"
    status = error.response.status_code if error.response is not None else 0
    if status in (401, 403):
        return Failure(
            kind.denied,
            f"the hub at {api.endpoint} refuses hf://{repo} ({status}): check that HF_TOKEN in "
            f"{kind.section}.secretRef is valid, and that its account has accepted the licence at {page}",
            field,
        )
    if status == 404:
        return Failure(kind.not_found, f"hf://{repo} does not exist at {api.endpoint}: correct the name", field)
    return Failure(
        Reason.DOWNLOAD_FAILED, f"the hub at {api.endpoint} answered {status} for hf://{repo}: try again later", field
    )


def open_client(endpoint: str | None, secret: Path | None, kind: RepositoryKind, *, signed_in: bool = False) -> HfApi:
    """Open the hub's client, with the token of the Secret that the user named.

    Args:
        endpoint: The hub's URL; None for the public one.
        secret: The directory of the Secret; None without one.
        kind: Models or datasets.
        signed_in: Whether to use the user's own token, from the environment or `hf auth login`, if there is no Secret.

    Raises:
        Failure: The Secret has no token.
    """
    if secret is None:
        return HfApi(endpoint=endpoint, token=None if signed_in else False)
    token = secret / "HF_TOKEN"
    if not token.is_file() or not token.read_text(encoding="utf-8").strip():
        missing = "it has no such key" if secret.is_dir() else "there is no such Secret in the job's namespace"
        raise Failure(
            kind.denied, f"Secret {secret.name!r} must have the key HF_TOKEN: {missing}", f"{kind.section}.secretRef"
        )
    return HfApi(endpoint=endpoint, token=token.read_text(encoding="utf-8").strip())
