"""Define ``spec.model``: the base model, and the adapter to start from."""

import re
from typing import Annotated, ClassVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

from finetune_api.base import S3_DESCRIPTION, Model, S3Location, SecretRef, Sha256
from finetune_api.core_v1.lists import Name, check_choice, exactly_one
from finetune_api.core_v1.volumes import AbsolutePath
from finetune_api.dataset import is_workstation
from finetune_api.uris import BUCKET, CLAIM_URI, HUB_URI, SAFE_PATH, FileUri, PvcUri, parse_uri, split_hub_address

URI_PATTERN = rf"^({HUB_URI}/?|s3://{BUCKET}(/.*)?|{CLAIM_URI}{SAFE_PATH}*/*)$"
RelativeDirectory = Annotated[str, Field(max_length=1024, pattern=r"^\.*[^/:.][^/:]*(/\.*[^/:.][^/:]*)*$")]
"""A path without empty parts, ``.`` and ``..``, and without a slash at its ends."""
CACHE_OF_DOWNLOADS = (
    "cache is for models that are downloaded (hf:// and s3://), and a pvc:// model is on a volume already: remove cache"
)
REVISION_OF_HUB = "revision belongs to hf:// models only: remove it, or name the model on the hub"


class StartingAdapter(Model):
    """A finished adapter whose weights the training starts from."""

    uri: str = Field(description="s3:// URI of the adapter's directory.", pattern=rf"^s3://{BUCKET}/.+")
    digest: Sha256 | None = Field(
        None,
        description="sha256 of the adapter's manifest.json. Unset: that of the manifest that exists when the training "
        "starts.",
    )
    secret_ref: SecretRef | None = Field(
        None,
        description="Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Unset: spec.output.secretRef.",
    )
    s3: S3Location | None = Field(None, description=S3_DESCRIPTION)


class CacheClaim(Model):
    """A PersistentVolumeClaim that holds the cache."""

    claim_name: Name = Field(
        description="Name of the claim, in the job's namespace. Pods on several nodes need one that is ReadWriteMany."
    )
    path: RelativeDirectory | None = Field(None, description="Directory in the volume. Unset: its root.")


class CacheHostPath(Model):
    """A directory of the nodes that holds the cache."""

    path: AbsolutePath = Field(
        description="Directory that exists on every node and is the same on all, such as a mounted file system. User "
        "65532 must be able to write to it."
    )


class ModelCache(Model):
    """The volume that keeps models for all jobs: exactly one of the fields."""

    persistent_volume_claim: CacheClaim | None = Field(None, description="A PersistentVolumeClaim.")
    host_path: CacheHostPath | None = Field(
        None, description="A directory of the nodes, if the chart value trainer.podPolicy.hostPaths allows it."
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [exactly_one("persistentVolumeClaim", "hostPath")]

    @model_validator(mode="after")
    def _check(self) -> "ModelCache":
        check_choice(self, self.cel_rules[0])
        return self


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
    cache: ModelCache | None = Field(
        None,
        description="Volume into which the preflight downloads the model, once for all jobs. The trainer reads it from "
        "there, so that no GPU waits for a download. Unset: each trainer pod downloads the model.",
    )
    adapter: StartingAdapter | None = Field(
        None,
        description="Finished adapter whose training continues. It must have been trained on this model with the same "
        "method. Unset: a new adapter.",
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "!has(self.revision) || self.uri.startsWith('hf://')",
            "message": REVISION_OF_HUB,
            "fieldPath": ".revision",
        },
        {
            "rule": "!has(self.cache) || self.uri.startsWith('hf://') || self.uri.startsWith('s3://')",
            "message": CACHE_OF_DOWNLOADS,
            "fieldPath": ".cache",
        },
    ]

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, uri: str, info: ValidationInfo) -> str:
        parsed = parse_uri(uri)
        if isinstance(parsed, FileUri):
            if not is_workstation(info):
                raise ValueError(
                    "file:// is a directory of the workstation that runs `finetune run`: for a cluster put the model "
                    "into s3:// or pvc://"
                )
        elif not re.fullmatch(URI_PATTERN, uri) and not isinstance(parsed, PvcUri):  # resolved by the trainer
            remedy = split_hub_address(uri) or "write hf://org/name, s3://bucket/prefix or pvc://claim/path"
            raise ValueError(f"{uri!r} is not the address of a model: {remedy}")
        return uri

    @model_validator(mode="after")
    def _check(self) -> "ModelSource":
        if self.revision is not None and not self.uri.startswith("hf://"):
            raise ValueError(REVISION_OF_HUB)
        if self.cache is not None and not self.uri.startswith(("hf://", "s3://")):
            raise ValueError(CACHE_OF_DOWNLOADS)
        return self
