"""Define prefix tuning, prompt tuning and P-tuning: learned tokens before the text."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from finetune_api.estimate.modules import Architecture, NotCountedError
from finetune_api.limits import MAX_COUNT
from finetune_api.methods.block import Positive, Rate, VirtualTokens

WIDTH_NEEDS_PROJECTION = (
    "encoderHiddenSize is the width of the prefixProjection network: set prefixProjection to true, or remove "
    "encoderHiddenSize"
)
TEXT_WITH_ITS_INIT = "promptTuningInit text and promptTuningInitText belong together: set both, or neither"


class PrefixTuning(VirtualTokens):
    """Learned keys and values before the text, in each layer (peft.PrefixTuningConfig)."""

    peft_type: ClassVar[str] = "PREFIX_TUNING"
    default_learning_rate: ClassVar[float] = 1e-3
    prepends_keys_and_values: ClassVar[bool] = True

    prefix_projection: bool = Field(False, description="Train the prefix through a two-layer network.")
    encoder_hidden_size: int | None = Field(
        None, description="Width of that network. Unset: the model's hidden size.", ge=1, le=MAX_COUNT
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "!has(self.encoderHiddenSize) || self.prefixProjection",
            "message": WIDTH_NEEDS_PROJECTION,
            "fieldPath": ".encoderHiddenSize",
        }
    ]

    @model_validator(mode="after")
    def _check_projection(self) -> "PrefixTuning":
        if self.encoder_hidden_size is not None and not self.prefix_projection:
            raise ValueError(WIDTH_NEEDS_PROJECTION)
        return self

    @property
    def prepended_tokens(self) -> int:
        """Return 0: a prefix is keys and values only."""
        return 0

    @property
    def prefix_tokens(self) -> int:
        """Return how many learned keys and values are put before those of each attention layer."""
        return self.num_virtual_tokens

    def count_parameters(self, architecture: Architecture) -> int:
        """Return a key and a value per token and layer, or the network: Li and Liang 2021, sections 4.2 and 4.3.

        Where config.json has num_key_value_heads, the prefix is as wide as those heads
        (peft/tuners/prefix_tuning/model.py).
        """
        if architecture.prefix_heads > architecture.attention.key_value_heads == 1 or not architecture.prefix_heads:
            raise NotCountedError(
                f"PEFT's prefix does not fit the attention of this {architecture.model_type}: use lora"
            )
        width, tokens = architecture.prefix_width, self.num_virtual_tokens
        outputs = 2 * architecture.layers * width
        if not self.prefix_projection:
            return tokens * outputs
        inner = self.encoder_hidden_size or width
        return tokens * width + (width + 1) * inner + (inner + 1) * outputs


class PromptTuning(VirtualTokens):
    """Learned embeddings before the text (peft.PromptTuningConfig)."""

    peft_type: ClassVar[str] = "PROMPT_TUNING"
    default_learning_rate: ClassVar[float] = 1e-3

    prompt_tuning_init: Literal["random", "sampleVocab", "text"] = Field(
        "sampleVocab",
        description="Initial embeddings: random values, those of random tokens of the vocabulary, or those of "
        "promptTuningInitText.",
    )
    prompt_tuning_init_text: str | None = Field(
        None, description="Text whose embeddings are the initial ones, for promptTuningInit text."
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "has(self.promptTuningInitText) == (self.promptTuningInit == 'text')",
            "message": TEXT_WITH_ITS_INIT,
            "fieldPath": ".promptTuningInitText",
        }
    ]

    @model_validator(mode="after")
    def _check_text(self) -> "PromptTuning":
        if (self.prompt_tuning_init_text is not None) != (self.prompt_tuning_init == "text"):
            raise ValueError(TEXT_WITH_ITS_INIT)
        return self

    def count_parameters(self, architecture: Architecture) -> int:
        """Return the numbers in one embedding per token: Lester et al. 2021, section 2."""
        if self.prompt_tuning_init == "random":
            self.check_width(architecture)
        return self.num_virtual_tokens * architecture.embeddings.outputs


class PTuning(VirtualTokens):
    """Learned embeddings before the text, made by a small network (peft.PromptEncoderConfig)."""

    peft_type: ClassVar[str] = "P_TUNING"
    default_learning_rate: ClassVar[float] = 5e-4
    adapter_is_complete: ClassVar[bool] = False

    encoder_reparameterization_type: Literal["MLP", "LSTM"] = Field("MLP", description="Kind of that network.")
    encoder_hidden_size: int | None = Field(
        None, description="Width of that network. Unset: the model's hidden size.", ge=1, le=MAX_COUNT
    )
    encoder_num_layers: Positive = Field(2, description="Layers of an LSTM; an MLP always has three.")
    encoder_dropout: Rate = Field(0.0, description="Dropout of an LSTM.")

    def count_parameters(self, architecture: Architecture) -> int:
        """Return the size of the embeddings and the network (Liu et al. 2021, section 3; PEFT's p_tuning/model.py)."""
        self.check_width(architecture)
        width = architecture.hidden
        inner = self.encoder_hidden_size or width
        tokens = self.num_virtual_tokens * width
        if self.encoder_reparameterization_type == "MLP":
            return tokens + (width + 1) * inner + (inner + 1) * inner + (inner + 1) * width
        # The LSTM has two directions, each with four gates of two biases.
        # Its first layer reads the embeddings, the others read both directions.
        first = 2 * 4 * inner * (width + inner + 2)
        others = (self.encoder_num_layers - 1) * 2 * 4 * inner * (3 * inner + 2)
        head = (2 * inner + 1) * 2 * inner + (2 * inner + 1) * width
        return tokens + first + others + head
