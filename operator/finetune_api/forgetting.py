"""Define ``spec.evaluation.forgetting``: how much worse the model becomes on an unrelated text."""

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from finetune_api.base import Model
from finetune_api.dataset import check_uri
from finetune_api.limits import MAX_COUNT
from finetune_api.uris import BUCKET, CLAIM_URI, SAFE_PATH

NO_HUB = (
    "a general text is a file, and hf:// names a dataset: write s3://bucket/key, pvc://claim/path "
    "or configmap://name/key"
)


class Forgetting(Model):
    """The comparison of base and adapter on a general text."""

    uri: str | None = Field(
        None,
        description="URI of a plain text in UTF-8: s3://bucket/key, pvc://claim/path or configmap://name/key. It is "
        "read with the dataset's credentials; gzip and zstd are decompressed. Unset: a short English text that comes "
        "with the trainer.",
        json_schema_extra={"pattern": rf"^(s3://{BUCKET}/.+|{CLAIM_URI}{SAFE_PATH}+/*|configmap://[^/]+/.+)$"},
    )
    max_sequences: Annotated[int, Field(ge=1, le=MAX_COUNT)] = Field(
        50, description="Maximum number of sequences of training.maxLength tokens to use."
    )

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, uri: str | None, info: ValidationInfo) -> str | None:
        if uri is not None and uri.startswith("hf://"):
            raise ValueError(NO_HUB)
        return check_uri(uri, info) if uri is not None else None


class ForgettingStatus(Model):
    """Base and adapter on the general text: mean negative log-likelihood per token in nats, and its exp."""

    base_loss: float = Field(description="Loss of the base model.")
    loss: float = Field(description="Loss of the finished adapter.")
    increase_percent: float = Field(
        description="Increase of the loss over the base's, in percent of the base's. Negative if it is lower."
    )
    base_perplexity: float = Field(description="exp(baseLoss).")
    perplexity: float = Field(description="exp(loss).")
    sequences: int = Field(description="Number of sequences that were used.", ge=0)
