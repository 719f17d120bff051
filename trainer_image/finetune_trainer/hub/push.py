"""Push the finished adapter to the hub if the job asks for it; check the access before a GPU is used."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from finetune_api.finetunejob import HubOutput
from finetune_api.reasons import Reason
from finetune_trainer.hub import client
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.settings import Settings

T = TypeVar("T")
SECTION = "spec.output.hub"
KIND = replace(client.MODEL, section=SECTION, denied=Reason.OUTPUT_ACCESS_DENIED)


def _open_client(settings: Settings, output: HubOutput) -> HfApi:
    """Open the hub's client, with the token of the Secret that the user named."""
    return client.open_client(
        settings.hub_endpoint, settings.secret(output.secret_ref), KIND, signed_in=settings.workstation
    )


def check_write_access(settings: Settings, output: HubOutput) -> None:
    """Check that the hub accepts the token, and that the token may write.

    Raises:
        Failure: The token is missing, unknown or read-only, or the hub does not answer.
    """
    api = _open_client(settings, output)
    account = _call_hub(api, output, api.whoami)
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise Failure(
            Reason.OUTPUT_ACCESS_DENIED,
            f"the token of {account.get('name')} at {api.endpoint} may only read: "
            f"create one that may write to {output.repo}",
            f"{SECTION}.secretRef",
        )


def push(settings: Settings, output: HubOutput, directory: Path) -> str:
    """Upload the files of ``directory``, and return their address: ``hf://org/name@commit``.

    Files that the repository already has are not uploaded again.

    Raises:
        Failure: The hub refuses or does not answer.
    """
    api = _open_client(settings, output)
    _call_hub(api, output, lambda: api.create_repo(output.repo, private=output.private, exist_ok=True))
    commit = _call_hub(
        api,
        output,
        lambda: api.upload_folder(
            repo_id=output.repo,
            folder_path=directory,
            commit_message=f"{settings.job.metadata.name}, made by finetune-operator",
        ),
    )
    return f"hf://{output.repo}@{commit.oid}"


def _call_hub(api: HfApi, output: HubOutput, action: Callable[[], T]) -> T:
    try:
        return action()
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403, 404):
            raise Failure(
                Reason.OUTPUT_ACCESS_DENIED,
                f"the hub at {api.endpoint} refuses to write to {output.repo} ({status}): "
                "check that HF_TOKEN is valid and may write to it",
                f"{SECTION}.secretRef",
            ) from error
        raise Failure(
            Reason.UPLOAD_FAILED, f"the hub at {api.endpoint} answered {status} for {output.repo}", SECTION
        ) from error
    except (httpx2.HTTPError, OSError) as error:
        raise Failure(
            Reason.UPLOAD_FAILED,
            f"the hub at {api.endpoint} does not answer ({type(error).__name__}): check HF_ENDPOINT and the network",
            SECTION,
        ) from error
