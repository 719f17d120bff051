"""``spec.dataset``: where the rows are, what they look like, and which of them are held out; and what was made of them."""

from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from finetune_api.base import S3_DESCRIPTION, Lenient, Model, S3Location, SecretRef
from finetune_api.uris import FileUri, HfUri, parse_uri

WORKSTATION = "workstation"
"""Key of pydantic's validation context: True lets ``file://`` pass, which only means something where the user's files are."""
URI_PATTERN = r"^(hf://[^/]+(/[^/]+)?|(s3|pvc|configmap)://[^/]+/.+)$"
Format = Literal["auto", "text", "promptCompletion", "messages", "instruction", "preference"]
LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
"""Upper ends of the buckets in which sequences are counted by their tokens; what is longer is counted in one more."""


def check_address(uri: str, info: ValidationInfo) -> str:
    """The address, if data can be read from it. The one place that decides where ``file://`` is allowed. Raises ValueError."""
    parsed = parse_uri(uri)
    if isinstance(parsed, FileUri):
        if not (info.context or {}).get(WORKSTATION):
            raise ValueError(
                "file:// is a file of the workstation that `finetune run` runs on: for a cluster put the data into s3://, pvc:// or configmap://"
            )
    elif not isinstance(parsed, HfUri) and not uri.partition("://")[2].strip("/").partition("/")[2]:
        raise ValueError(f"{uri!r} names no file: write s3://bucket/key, pvc://claim/path or configmap://name/key")
    return uri


class Columns(Model):
    """The names that the dataset's columns have, where they are not the usual ones."""

    text: str = Field("text", description="Column of the text, for format text.")
    prompt: str = Field("prompt", description="Column of the prompt, for formats promptCompletion and preference.")
    completion: str = Field("completion", description="Column of the completion, for format promptCompletion.")
    messages: str = Field("messages", description="Column of the chat messages, for format messages.")
    tools: str = Field(
        "tools",
        description="Column of the tools that the chat template is given, for format messages; it may be missing.",
    )
    instruction: str = Field("instruction", description="Column of the instruction, for format instruction.")
    input: str | None = Field(
        None,
        description="Column of what the instruction is about, for format instruction; it may be missing or empty. Unset: input (Alpaca) or context (Dolly).",
    )
    output: str | None = Field(
        None, description="Column of the answer, for format instruction. Unset: output (Alpaca) or response (Dolly)."
    )
    chosen: str = Field("chosen", description="Column of the better answer, for format preference.")
    rejected: str = Field("rejected", description="Column of the worse answer, for format preference.")
    label: str = Field("label", description="Column that says whether the completion is wanted, for objective kto.")


class Template(Model):
    """Jinja templates that make a text, or a prompt and its completion, of a row. The row's columns are the variables."""

    text: str | None = Field(None, description="Template of the whole text, all of which is learned.", min_length=1)
    prompt: str | None = Field(None, description="Template of the prompt, which is not learned; with completion.")
    completion: str | None = Field(None, description="Template of the completion, which is learned.", min_length=1)

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "has(self.text) != has(self.completion) && has(self.prompt) == has(self.completion)",
            "message": "exactly one of text and the pair of prompt and completion must be set",
        }
    ]

    @model_validator(mode="after")
    def _one(self) -> "Template":
        pair = self.completion is not None
        if (self.text is not None) == pair or (self.prompt is not None) != pair:
            raise ValueError("exactly one of text and the pair of prompt and completion must be set")
        return self


class Validation(Model):
    """The held-out rows, on which base and adapter are compared."""

    uri: str | None = Field(
        None,
        description="Held-out data of its own, addressed as the dataset is, and of the dataset's format.",
        json_schema_extra={"pattern": URI_PATTERN},
    )
    fraction: float | None = Field(
        None, description="Part of the dataset that is held out, for example 0.1.", gt=0, lt=1
    )
    split: str | None = Field(
        None, description="Split of the hf:// dataset that is held out, for example test.", min_length=1
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "[has(self.uri), has(self.fraction), has(self.split)].filter(x, x).size() == 1",
            "message": "exactly one of uri, fraction and split must be set",
        }
    ]

    @field_validator("uri")
    @classmethod
    def _address(cls, uri: str | None, info: ValidationInfo) -> str | None:
        return check_address(uri, info) if uri is not None else None

    @model_validator(mode="after")
    def _one(self) -> "Validation":
        if sum(value is not None for value in (self.uri, self.fraction, self.split)) != 1:
            raise ValueError("exactly one of uri, fraction and split must be set")
        return self


HUB_ONLY = "name, split, revision and validation.split belong to hf:// datasets only: remove them, or name the dataset on the hub"
TEMPLATE_OR_FORMAT = "template and format are both set: remove format, because the template says what becomes of a row"


class DatasetSource(Model):
    """The rows to train on."""

    uri: str = Field(
        description="Where the rows are: hf://org/name, s3://bucket/key, pvc://claim/path or configmap://name/key; a file, or a directory of files. jsonl, "
        "json, csv, parquet or plain text; gzip and zstd are seen through.",
        json_schema_extra={"pattern": URI_PATTERN},
    )
    name: str | None = Field(
        None, description="Configuration of an hf:// dataset that has several, for example main.", min_length=1
    )
    split: str | None = Field(None, description="Split of an hf:// dataset. Unset: train.", min_length=1)
    revision: str | None = Field(
        None,
        description="Commit, tag or branch of an hf:// dataset. Unset: the hub's default branch, which may move: name a commit to be sure.",
    )
    format: Format = Field(
        "auto",
        description="What a row is: text, promptCompletion, messages (a chat), instruction (Alpaca's or Dolly's columns) or preference (a better and a "
        "worse answer). auto: told from the columns of the first row, and reported.",
    )
    columns: Columns = Field(
        default_factory=Columns, description="Names of the columns, where they are not the usual ones."
    )
    template: Template | None = Field(
        None,
        description="Jinja templates that make a text, or a prompt and its completion, of a row. Instead of format.",
    )
    validation: Validation | None = Field(
        None, description="Held-out rows. Unset: a tenth of the dataset, at most 200 rows."
    )
    max_samples: Annotated[int, Field(ge=1)] | None = Field(None, description="Use only the first so many rows.")
    secret_ref: SecretRef | None = Field(
        None,
        description="Secret with HF_TOKEN (hf://) or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (s3://). Unset for s3://: spec.output.secretRef.",
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
    def _address(cls, uri: str, info: ValidationInfo) -> str:
        return check_address(uri, info)

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


class Counts(Lenient):
    """What was made of the rows: filled while they are read, and part of the run's result. Nothing is cut or left out without being counted."""

    model_config = ConfigDict(frozen=False)

    layout: str = Field("", description="What a row was taken as.")
    rows: int = Field(0, description="Rows that were read to train on; blocks, of plain text.")
    empty: int = Field(0, description="Rows left out because they hold no text to learn from.")
    truncated: int = Field(0, description="Sequences cut to maxLength.")
    cut_tokens: int = Field(0, description="Tokens that were cut off them.")
    dropped: int = Field(0, description="Rows left out because nothing was left to learn from.")
    without_end: int = Field(0, description="Sequences that do not end with the end-of-text token.")
    whole_conversation: int = Field(
        0, description="Chats learned whole because the template does not tell the turns apart."
    )
    duplicates: int = Field(0, description="Training rows that are copies of another one.")
    leaked: int = Field(0, description="Held-out rows that are training rows too.")
    sequences: int = Field(0, description="Sequences to train on.")
    held_out: int = Field(0, description="Sequences held out.")
    tokens: int = Field(0, description="Tokens of the training sequences.")
    learned_tokens: int = Field(0, description="Those of them that the loss looks at.")
    longest: int = Field(0, description="Tokens of the longest row, before it was cut.")
    lengths: list[int] = Field(
        [0] * (len(LENGTHS) + 1),
        description="How many rows have at most 16, 32, 64 … 131072 tokens, and how many have more, before they were cut.",
    )
