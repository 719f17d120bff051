"""Define the counts of a dataset: how many rows were read, cut or left out."""

from pydantic import ConfigDict, Field

from finetune_api.base import Lenient

LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
"""Upper bounds in tokens of the buckets in which sequences are counted; one more bucket counts longer ones."""


class Counts(Lenient):
    """The counts that the trainer makes while it reads the rows; they are part of the run's result.

    Every row that is cut or left out is counted.
    """

    model_config = ConfigDict(frozen=False)

    layout: str = Field("", description="Format in which the rows were read.")
    columns: list[str] = Field(default_factory=list, description="Columns that this format uses.")
    unused_columns: list[str] = Field(default_factory=list, description="Columns that it does not use.")
    rows: int = Field(0, description="Rows that were read to train on; for plain text, its blocks.")
    empty: int = Field(0, description="Rows that were left out because they contain no text to learn from.")
    truncated: int = Field(0, description="Sequences that were cut to maxLength.")
    cut_tokens: int = Field(0, description="Tokens that were cut off these sequences.")
    dropped: int = Field(0, description="Rows that were left out because the cut left nothing to learn from.")
    without_end: int = Field(0, description="Sequences that do not end with the end-of-text token.")
    whole_conversation: int = Field(
        0, description="Chats of which all turns are learned, because spec.dataset.assistantOnlyLoss is false."
    )
    lost_reasoning: int = Field(0, description="Chats whose reasoning the chat template leaves out.")
    lost_messages: int = Field(
        0, description="Chats of which the chat template leaves out a message or the tools, which the model never sees."
    )
    duplicates: int = Field(0, description="Training rows that are copies of another one.")
    leaked: int = Field(0, description="Held-out rows that are training rows as well.")
    sequences: int = Field(0, description="Sequences to train on.")
    held_out: int = Field(0, description="Sequences that are held out.")
    tokens: int = Field(0, description="Tokens of the training sequences.")
    learned_tokens: int = Field(0, description="Tokens of the training sequences that the loss covers.")
    longest: int = Field(0, description="Tokens of the longest row, before it was cut.")
    lengths: list[int] = Field(
        [0] * (len(LENGTHS) + 1),
        description="Number of rows by their length before the cut: at most 16, 32, 64 … 131072 tokens, and more.",
    )
