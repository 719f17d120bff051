"""The hub, through its own client: a revision resolved to a commit, files listed, headers read by range, files fetched."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)

from finetune_api.reasons import Reason
from finetune_artifacts.safetensors import Tensor
from finetune_trainer.runtime.failures import DISK_FULL_ERRNOS, Failure

T = TypeVar("T")


@dataclass(frozen=True)
class RepositoryKind:
    """What a repository of the hub holds, and how its faults are told."""

    noun: str
    section: str
    pages: str
    not_found: Reason
    denied: Reason
    elsewhere: str


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


@dataclass(frozen=True)
class HubModel:
    """A model at one commit, and the names of its files."""

    repo: str
    commit: str
    files: tuple[str, ...]


def resolve_model(api: HfApi, repo: str, revision: str | None) -> HubModel:
    """The model at the commit that ``revision`` (None: the default branch) stands for now. Raises Failure."""
    info = call_hub(api, MODEL, repo, revision, lambda: api.model_info(repo, revision=revision))
    return HubModel(repo, info.sha or "", tuple(sibling.rfilename for sibling in info.siblings or []))


def read_tensors(api: HfApi, model: HubModel) -> dict[str, Tensor]:
    """Names, types and shapes of all tensors, from the headers alone. Raises Failure."""
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
    """Fetch one small file. Raises Failure."""
    return Path(
        call_hub(
            api,
            MODEL,
            model.repo,
            model.commit,
            lambda: api.hf_hub_download(model.repo, name, revision=model.commit, local_dir=directory),
        )
    )


def download_model(api: HfApi, repo: str, commit: str, directory: Path | None, *, code: bool = False) -> Path:
    """Fetch configuration, tokenizer and safetensors, and with ``code`` Python files, into ``directory`` (None: the user's cache of the hub). Raises Failure."""
    wanted = [*MODEL_FILES, "*.py"] if code else MODEL_FILES
    return Path(
        call_hub(
            api,
            MODEL,
            repo,
            commit,
            lambda: api.snapshot_download(repo, revision=commit, local_dir=directory, allow_patterns=wanted),
        )
    )


def call_hub(api: HfApi, kind: RepositoryKind, repo: str, revision: str | None, action: Callable[[], T]) -> T:
    """Do something with a repository; what its client raises becomes a Failure that names the remedy."""
    page, field = f"{api.endpoint}/{kind.pages}{repo}", f"{kind.section}.uri"
    at = f" at revision {revision!r}" if revision else ""
    try:
        return action()
    except GatedRepoError as error:
        raise Failure(
            kind.denied,
            f"hf://{repo} is a gated {kind.noun}: accept its licence at {page} with the account of the token, and name a Secret with that HF_TOKEN in "
            f"{kind.section}.secretRef",
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
            f"hf://{repo} does not exist at {api.endpoint}, or is private: correct the name, or name a Secret with an HF_TOKEN that may read it in "
            f"{kind.section}.secretRef",
            field,
        ) from error
    except HfHubHTTPError as error:
        raise _http_failure(api, kind, repo, page, error) from error
    except (httpx2.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
            raise  # the disk, not the hub
        raise Failure(
            Reason.DOWNLOAD_FAILED,
            f"the hub at {api.endpoint} does not answer for hf://{repo}{at} ({type(error).__name__}): check HF_ENDPOINT and the network, or take the "
            f"{kind.noun} from {kind.elsewhere}",
            field,
        ) from error


def _http_failure(api: HfApi, kind: RepositoryKind, repo: str, page: str, error: HfHubHTTPError) -> Failure:
    field = f"{kind.section}.uri"
    status = error.response.status_code if error.response is not None else 0
    if status in (401, 403):
        return Failure(
            kind.denied,
            f"the hub at {api.endpoint} refuses hf://{repo} ({status}): check that HF_TOKEN in {kind.section}.secretRef is valid, and that its account "
            f"has accepted the licence at {page}",
            field,
        )
    if status == 404:
        return Failure(kind.not_found, f"hf://{repo} does not exist at {api.endpoint}: correct the name", field)
    return Failure(
        Reason.DOWNLOAD_FAILED, f"the hub at {api.endpoint} answered {status} for hf://{repo}: try again later", field
    )


def open_client(endpoint: str | None, secret: Path | None, kind: RepositoryKind, *, signed_in: bool = False) -> HfApi:
    """The hub's own client, with the token in the Secret that the user named. Raises Failure if the Secret has none.

    Without a Secret nobody is asked for a token, unless the user is ``signed_in``: then the environment has it, or `hf auth login` has kept it.
    """
    if secret is None:
        return HfApi(endpoint=endpoint, token=None if signed_in else False)
    token = secret / "HF_TOKEN"
    if not token.is_file() or not token.read_text(encoding="utf-8").strip():
        found = "it has no such key" if secret.is_dir() else "there is no such Secret in the job's namespace"
        raise Failure(
            kind.denied, f"Secret {secret.name!r} must have the key HF_TOKEN: {found}", f"{kind.section}.secretRef"
        )
    return HfApi(endpoint=endpoint, token=token.read_text(encoding="utf-8").strip())
