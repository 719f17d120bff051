"""``spec.model``: the base model, and the adapter to start from."""

import re
from typing import ClassVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

from finetune_api.base import S3_DESCRIPTION, Model, S3Location, SecretRef, Sha256
from finetune_api.dataset import is_workstation
from finetune_api.uris import FileUri, parse_uri

URI_PATTERN = r"^(hf|s3|pvc)://[^/]+"
REVISION_OF_HUB = "revision belongs to hf:// models only: remove it, or name the model on the hub"


class StartingAdapter(Model):
    """A finished adapter whose weights the training starts from."""

    uri: str = Field(description="s3:// URI of the adapter's directory.", pattern=r"^s3://[^/]+/.+")
    digest: Sha256 | None = Field(
        None,
        description="sha256 of its manifest.json. Unset: the digest of the manifest that exists when the training "
        "starts.",
    )
    secret_ref: SecretRef | None = Field(
        None,
        description="Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Unset: spec.output.secretRef.",
    )
    s3: S3Location | None = Field(None, description=S3_DESCRIPTION)


class ModelSource(Model):
    """The base model to fine-tune."""

    uri: str = Field(
        description="URI of the model's directory: hf://org/name, s3://bucket/prefix or pvc://claim/path.",
        json_schema_extra={"pattern": URI_PATTERN},
    )
    revision: str | None = Field(
        None,
        description="Commit, tag or branch of an hf:// model. Unset: the hub's default branch, resolved once to a "
        "commit.",
    )
    secret_ref: SecretRef | None = Field(
        None,
        description="Secret with HF_TOKEN (hf://) or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (s3://). Unset for "
        "s3://: spec.output.secretRef.",
    )
    s3: S3Location | None = Field(None, description=S3_DESCRIPTION)
    trust_remote_code: bool = Field(
        False,
        description="Run Python code from the model's directory (auto_map in config.json) in the trainer pods, with "
        "access to everything that these pods can reach. Needed only for a model that transformers has no code for. "
        "The cluster's administrator must allow it (chart value trainer.allowRemoteCode).",
    )
    adapter: StartingAdapter | None = Field(
        None,
        description="Finished adapter of this model and of the same method, to continue training from. Unset: a new "
        "adapter.",
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "!has(self.revision) || self.uri.startsWith('hf://')",
            "message": REVISION_OF_HUB,
            "fieldPath": ".revision",
        }
    ]

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, uri: str, info: ValidationInfo) -> str:
        if isinstance(parse_uri(uri), FileUri):
            if not is_workstation(info):
                raise ValueError(
                    "file:// is a directory of the workstation that runs `finetune run`: for a cluster put the model "
                    "into s3:// or pvc://"
                )
        elif not re.match(URI_PATTERN, uri):
            raise ValueError(f"{uri!r} must be hf://org/name, s3://bucket/prefix or pvc://claim/path")
        return uri

    @model_validator(mode="after")
    def _check(self) -> "ModelSource":
        if self.revision is not None and not self.uri.startswith("hf://"):
            raise ValueError(REVISION_OF_HUB)
        return self
