"""Define ``spec.output``: where checkpoints and the adapter are stored."""

from typing import Literal

from pydantic import Field

from finetune_api.base import Model, S3Location, SecretRef
from finetune_api.uris import HUB_NAME


class S3Output(S3Location):
    """The S3 bucket and key prefix of checkpoints and adapter."""

    bucket: str = Field(
        description="Bucket, which must exist.", min_length=3, max_length=63, pattern=r"^[a-z0-9][a-z0-9.-]+[a-z0-9]$"
    )
    prefix: str | None = Field(
        None,
        description="Key prefix of this job's objects. Unset: <namespace>/<name>/<first 8 digits of the job's uid>.",
        pattern=r"^[A-Za-z0-9!_.*'()-]+(/[A-Za-z0-9!_.*'()-]+)*$",
        max_length=512,
    )


class HubOutput(Model):
    """A repository of the model hub that also receives the finished adapter, its model card and its report."""

    repo: str = Field(
        description="Repository on the hub, org/name. It is created if it does not exist.",
        pattern=rf"^{HUB_NAME}/{HUB_NAME}$",
        max_length=96,
    )
    private: bool = Field(
        True, description="Create the repository as a private one. An existing repository stays as it is."
    )
    secret_ref: SecretRef = Field(
        description="Secret with HF_TOKEN, of an account that is allowed to write to the repository."
    )


DeletionPolicy = Literal["Retain", "Delete"]


class Output(Model):
    """Where checkpoints and the adapter are stored."""

    s3: S3Output = Field(description="S3 bucket and key prefix.")
    hub: HubOutput | None = Field(None, description="Repository of the model hub, in addition to S3.")
    merged_model: bool = Field(
        False,
        description="Also merge the adapter into the base, and store the merged model next to the adapter. A pod "
        "without a GPU does so when the adapter is finished; the condition Merged reports the result.",
    )
    secret_ref: SecretRef | None = Field(
        None,
        description="Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if needed, AWS_SESSION_TOKEN. Unset: "
        "the pod's own identity.",
    )
    deletion_policy: DeletionPolicy = Field(
        "Retain",
        description="What happens to this job's objects in S3 when the FineTuneJob is deleted. Retain: they stay. "
        "Delete: a clean-up pod with the credentials of secretRef deletes the checkpoints, the adapter, the merged "
        "model and the reports that the job wrote; a copy on the hub stays. If the clean-up fails, the FineTuneJob is "
        "deleted nevertheless, and an Event names what is left.",
    )
