"""Define ``spec.dataset``: where the rows are, which format they have, and which of them are held out."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from finetune_api.base import S3_DESCRIPTION, Model, S3Location, SecretRef
from finetune_api.limits import MAX_COUNT
from finetune_api.uris import (
    BUCKET,
    CLAIM_URI,
    HUB_URI,
    SAFE_PATH,
    FileUri,
    HfUri,
    PvcUri,
    parse_uri,
    split_hub_address,
)

WORKSTATION = "workstation"
"""Key of pydantic's validation context: True allows ``file://``, which only exists on the user's workstation."""
URI_PATTERN = rf"^({HUB_URI}|s3://{BUCKET}/.+|{CLAIM_URI}{SAFE_PATH}+/*|configmap://[^/]+/.+)$"
Format = Literal["auto", "text", "promptCompletion", "messages", "instruction", "preference"]

ONE_TEMPLATE = "exactly one of text and the pair of prompt and completion must be set"
ONE_VALIDATION = "exactly one of uri, fraction and split must be set"
HUB_ONLY = (
    "name, split, revision and validation.split belong to hf:// datasets only: remove them, or name a dataset on the "
    "hub"
)
TEMPLATE_OR_FORMAT = "template and format are both set: remove format, because the template defines how a row is read"


def is_workstation(info: ValidationInfo) -> bool:
    """Return whether a spec is for the workstation, where model and data may be ``file://``."""
    return bool((info.context or {}).get(WORKSTATION))


def check_uri(uri: str, info: ValidationInfo) -> str:
    """Check the URI of a dataset or a text. ``file://`` is allowed on a workstation only.

    Returns:
        The URI.

    Raises:
        ValueError: No data can be read from it; the message says why.
    """
    parsed = parse_uri(uri)
    if isinstance(parsed, FileUri):
        if not is_workstation(info):
            raise ValueError(
                "file:// is a file of the workstation that runs `finetune run`: for a cluster put the data into "
                "s3://, pvc:// or configmap://"
            )
    elif not isinstance(parsed, HfUri) and not uri.partition("://")[2].strip("/").partition("/")[2]:
        raise ValueError(f"{uri!r} names no file: write s3://bucket/key, pvc://claim/path or configmap://name/key")
    elif not re.fullmatch(URI_PATTERN, uri) and not isinstance(parsed, PvcUri):  # resolved by the trainer
        remedy = (
            split_hub_address(uri) or "write hf://org/name, s3://bucket/key, pvc://claim/path or configmap://name/key"
        )
        raise ValueError(f"{uri!r} is not the address of data: {remedy}")
    return uri


class Columns(Model):
    """The names of the dataset's columns, if they are not the usual ones."""

    text: str = Field("text", description="Column with the text, for format text.")
    prompt: str | None = Field(
        None,
        description="Column with the prompt, for formats promptCompletion and preference. Unset: prompt; for "
        "preference also question or query.",
    )
    completion: str = Field("completion", description="Column with the completion, for format promptCompletion.")
    messages: str | None = Field(
        None,
        description="Column with the chat, for format messages: OpenAI's messages or ShareGPT's turns. Unset: "
        "messages, conversations or conversation.",
    )
    tools: str | None = Field(
        None,
        description="Column with the tools that the chat template receives, for chats. It may be missing. Unset: tools "
        "or functions.",
    )
    system: str | None = Field(
        None,
        description="Column with the system prompt, for all formats but text. It may be missing or empty. Unset: "
        "system, system_prompt or system_message.",
    )
    instruction: str = Field("instruction", description="Column with the instruction, for format instruction.")
    history: str = Field(
        "history",
        description="Column with the earlier questions and answers, a list of pairs, for format instruction. It may be "
        "missing or empty.",
    )
    input: str | None = Field(
        None,
        description="Column with the instruction's input, for format instruction. It may be missing or empty. Unset: "
        "input (Alpaca) or context (Dolly).",
    )
    output: str | None = Field(
        None,
        description="Column with the answer, for format instruction. Unset: output (Alpaca) or response (Dolly).",
    )
    chosen: str = Field("chosen", description="Column with the better answer, for format preference.")
    rejected: str = Field("rejected", description="Column with the worse answer, for format preference.")
    label: str = Field("label", description="Column that says whether the completion is desirable, for objective kto.")
    ignored: list[str] = Field(
        default_factory=list,
        description="Columns that are left out on purpose, though a column of this name usually matters, for example "
        "weight or images.",
    )


class Template(Model):
    """Jinja templates that make a text, or a prompt and its completion, of a row. The row's columns are variables."""

    text: str | None = Field(None, description="Template of the text. The loss covers all of the text.", min_length=1)
    prompt: str | None = Field(
        None, description="Template of the prompt, which the loss does not cover; with completion."
    )
    completion: str | None = Field(
        None, description="Template of the completion, which the loss covers; with prompt.", min_length=1
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "has(self.text) != has(self.completion) && has(self.prompt) == has(self.completion)",
            "message": ONE_TEMPLATE,
        }
    ]

    @model_validator(mode="after")
    def _check_one(self) -> "Template":
        pair = self.completion is not None
        if (self.text is not None) == pair or (self.prompt is not None) != pair:
            raise ValueError(ONE_TEMPLATE)
        return self


class Validation(Model):
    """The held-out rows, on which base and adapter are compared."""

    uri: str | None = Field(
        None,
        description="URI of a separate held-out dataset, written like dataset.uri. Its format is the dataset's.",
        json_schema_extra={"pattern": URI_PATTERN},
    )
    fraction: float | None = Field(
        None, description="Fraction of the dataset that is held out, for example 0.1.", gt=0, lt=1
    )
    split: str | None = Field(
        None, description="Split of the hf:// dataset that is held out, for example test.", min_length=1
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "[has(self.uri), has(self.fraction), has(self.split)].filter(x, x).size() == 1",
            "message": ONE_VALIDATION,
        }
    ]

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, uri: str | None, info: ValidationInfo) -> str | None:
        return check_uri(uri, info) if uri is not None else None

    @model_validator(mode="after")
    def _check_one(self) -> "Validation":
        if sum(value is not None for value in (self.uri, self.fraction, self.split)) != 1:
            raise ValueError(ONE_VALIDATION)
        return self


class DatasetSource(Model):
    """The rows to train on."""

    uri: str = Field(
        description="URI of the rows: hf://org/name, s3://bucket/key, pvc://claim/path or configmap://name/key; a "
        "file, or a directory of files. Formats: jsonl, json, csv, parquet or plain text; gzip and zstd are "
        "decompressed.",
        json_schema_extra={"pattern": URI_PATTERN},
    )
    name: str | None = Field(
        None, description="Configuration of an hf:// dataset that has several, for example main.", min_length=1
    )
    split: str | None = Field(None, description="Split of an hf:// dataset. Unset: train.", min_length=1)
    revision: str | None = Field(
        None,
        description="Commit, tag or branch of an hf:// dataset. Unset: the hub's default branch, which may change: "
        "name a commit to pin the data.",
    )
    format: Format = Field(
        "auto",
        description="Format of a row: text, promptCompletion, messages (a chat), instruction (Alpaca's or Dolly's "
        "columns) or preference (a better and a worse answer). auto: detected from the columns of the first row, and "
        "reported.",
    )
    columns: Columns = Field(
        default_factory=Columns, description="Names of the columns, if they are not the usual ones."
    )
    template: Template | None = Field(
        None,
        description="Jinja templates that make a text, or a prompt and its completion, of a row, instead of a format.",
    )
    assistant_only_loss: bool = Field(
        True,
        description="Learn only the assistant's turns of a chat, for formats messages and instruction. False: learn "
        "the whole conversation, also if the chat template does not tell the turns apart.",
    )
    validation: Validation | None = Field(
        None, description="Held-out rows. Unset: a tenth of the dataset, at most 200 rows."
    )
    max_samples: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = Field(
        None, description="Number of rows to use, from the start of the dataset. Unset: all rows."
    )
    secret_ref: SecretRef | None = Field(
        None,
        description="Secret with HF_TOKEN (hf://) or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (s3://). Unset for "
        "s3://: spec.output.secretRef.",
    )
    s3: S3Location | None = Field(None, description=S3_DESCRIPTION)

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "self.uri.startsWith('hf://') || !(has(self.name) || has(self.split) || has(self.revision) || "
            "(has(self.validation) && has(self.validation.split)))",
            "message": HUB_ONLY,
        },
        {
            "rule": "!has(self.template) || self.format == 'auto'",
            "message": TEMPLATE_OR_FORMAT,
            "fieldPath": ".format",
        },
    ]

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, uri: str, info: ValidationInfo) -> str:
        return check_uri(uri, info)

    @model_validator(mode="after")
    def _check(self) -> "DatasetSource":
        held_out_split = self.validation.split if self.validation else None
        if not self.uri.startswith("hf://") and any(
            value is not None for value in (self.name, self.split, self.revision, held_out_split)
        ):
            raise ValueError(HUB_ONLY)
        if self.template is not None and self.format != "auto":
            raise ValueError(TEMPLATE_OR_FORMAT)
        return self
