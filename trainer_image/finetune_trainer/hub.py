"""The model hub, through its own client: a revision resolved to a commit, files listed, headers read by range, files fetched."""

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
from finetune_trainer.failures import Failure

T = TypeVar("T")
FIELD = "spec.model.uri"
WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken"]


@dataclass(frozen=True)
class HubModel:
    """A model at one commit, and the names of its files."""

    repo: str
    commit: str
    files: tuple[str, ...]


def resolve(api: HfApi, repo: str, revision: str | None) -> HubModel:
    """The model at the commit that ``revision`` (None: the default branch) stands for now. Raises Failure."""
    info = _ask(api, repo, revision, lambda: api.model_info(repo, revision=revision))
    return HubModel(repo, info.sha or "", tuple(sibling.rfilename for sibling in info.siblings or []))


def tensors(api: HfApi, model: HubModel) -> dict[str, Tensor]:
    """Names, types and shapes of all tensors, from the headers alone. Raises Failure."""
    metadata = _ask(
        api, model.repo, model.commit, lambda: api.get_safetensors_metadata(model.repo, revision=model.commit)
    )
    return {
        name: Tensor(info.dtype, tuple(info.shape))
        for file in metadata.files_metadata.values()
        for name, info in file.tensors.items()
    }


def file(api: HfApi, model: HubModel, name: str, directory: Path) -> Path:
    """Fetch one small file. Raises Failure."""
    return Path(
        _ask(
            api,
            model.repo,
            model.commit,
            lambda: api.hf_hub_download(model.repo, name, revision=model.commit, local_dir=directory),
        )
    )


def download(api: HfApi, repo: str, commit: str, directory: Path | None) -> Path:
    """Fetch configuration, tokenizer and safetensors into ``directory`` (None: the user's cache of the hub). Raises Failure."""
    return Path(
        _ask(
            api,
            repo,
            commit,
            lambda: api.snapshot_download(repo, revision=commit, local_dir=directory, allow_patterns=WANTED),
        )
    )


def _ask(api: HfApi, repo: str, revision: str | None, action: Callable[[], T]) -> T:
    page = f"{api.endpoint}/{repo}"
    at = f" at revision {revision!r}" if revision else ""
    try:
        return action()
    except GatedRepoError as error:
        raise Failure(
            Reason.MODEL_ACCESS_DENIED,
            f"hf://{repo} is a gated model: accept its licence at {page} with the account of the token, and name a Secret with that HF_TOKEN in "
            "spec.model.secretRef",
            FIELD,
        ) from error
    except RevisionNotFoundError as error:
        raise Failure(
            Reason.MODEL_NOT_FOUND,
            f"hf://{repo} has no revision {revision!r}: see {page}/tree/main",
            "spec.model.revision",
        ) from error
    except RepositoryNotFoundError as error:
        raise Failure(
            Reason.MODEL_NOT_FOUND,
            f"hf://{repo} does not exist at {api.endpoint}, or is private: correct the name, or name a Secret with an HF_TOKEN that may read it in "
            "spec.model.secretRef",
            FIELD,
        ) from error
    except HfHubHTTPError as error:
        raise _refused(api, repo, page, error) from error
    except SafetensorsParsingError as error:
        raise Failure(
            Reason.MODEL_UNSUPPORTED, f"a safetensors file of hf://{repo}{at} cannot be read: it is damaged", FIELD
        ) from error
    except (httpx2.HTTPError, OSError) as error:
        raise Failure(
            Reason.DOWNLOAD_FAILED,
            f"the model hub at {api.endpoint} does not answer for hf://{repo}{at} ({type(error).__name__}): check HF_ENDPOINT and the network, or take "
            "the model from s3:// or pvc://",
            FIELD,
        ) from error


def _refused(api: HfApi, repo: str, page: str, error: HfHubHTTPError) -> Failure:
    status = error.response.status_code if error.response is not None else 0
    if status in (401, 403):
        return Failure(
            Reason.MODEL_ACCESS_DENIED,
            f"the model hub at {api.endpoint} refuses hf://{repo} ({status}): check that HF_TOKEN in spec.model.secretRef is valid, and that its account "
            f"has accepted the licence at {page}",
            FIELD,
        )
    if status == 404:
        return Failure(Reason.MODEL_NOT_FOUND, f"hf://{repo} does not exist at {api.endpoint}: correct the name", FIELD)
    return Failure(
        Reason.DOWNLOAD_FAILED,
        f"the model hub at {api.endpoint} answered {status} for hf://{repo}: try again later",
        FIELD,
    )
