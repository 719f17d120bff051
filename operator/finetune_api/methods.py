"""``spec.method``: one block for each way to fine-tune, with PEFT's names in camelCase and the defaults that docs/methods.md gives reasons for."""

import difflib
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from finetune_api import peft_tables
from finetune_api.base import Model

ALL_LINEAR = "all-linear"
"""Each linear layer but the output head."""

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]


def _targets(default: str | list[str]) -> Any:
    """The field ``targetModules`` with a method's own default."""
    words = "all-linear" if default == ALL_LINEAR else "the architecture's defaults in PEFT"
    return Field(
        default,
        description=f"Modules that get an adapter: all-linear; a list of module name suffixes such as [q_proj, v_proj]; an empty list for the architecture's "
        f"defaults in PEFT; or a regular expression that matches whole module names. Default: {words}.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )


class Block(Model):
    """What all methods have in common."""

    default_learning_rate: ClassVar[float]
    """Peak learning rate where ``spec.training.learningRate`` is not set."""


class Targeted(Block):
    """A method that adapts chosen modules of the base."""

    target_modules: str | list[str] = _targets(ALL_LINEAR)
    modules_to_save: list[str] = Field(
        default_factory=list,
        description="Modules that are trained whole and saved with the adapter, by their name's last part, for example [lm_head].",
    )

    @model_validator(mode="after")
    def _check_targets(self) -> "Targeted":
        targets = self.target_modules
        if isinstance(targets, list):
            if not all(targets):
                raise ValueError("targetModules: the list has an empty name: remove it")
        elif targets != ALL_LINEAR:
            _check_expression(targets)
        return self


def _check_expression(expression: str) -> None:
    if re.fullmatch(r"\w*", expression):
        raise ValueError(
            f"targetModules: {expression!r} would be a regular expression for a whole module name, and matches none: "
            f"write a list, for example [{expression or 'q_proj'}], or all-linear"
        )
    try:
        re.compile(expression)
    except re.error as error:
        raise ValueError(
            f"targetModules: {expression!r} is neither all-linear nor a regular expression ({error}): correct it, or write a list of module names"
        ) from error


BEGINNING = "init pissa, olora and loftq go with neither bias nor modulesToSave: the adapter is published as a plain LoRA, which has none"


class LoraFields(Targeted):
    """What LoRA, QLoRA and DoRA have in common (peft.LoraConfig)."""

    rank: int = Field(16, description="Rank r of the update matrices.", ge=1, le=512)
    alpha: float = Field(32, description="Scaling numerator: the update is scaled by alpha / rank.", gt=0)
    dropout: Rate = Field(0.0, description="Dropout on the adapter's input.")
    bias: Literal["none", "all", "lora_only"] = Field(
        "none", description="Which biases of the base are trained too: none, all, or those of the adapted modules."
    )
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead (rank-stabilised LoRA).")
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=512)]] = Field(
        default_factory=dict,
        description="Other ranks for some modules, by a name's end or a regular expression for it, for example {down_proj: 32}.",
    )
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="Other alphas for some modules, as in rankPattern."
    )

    # The API server checks the default of spec.method, `lora: {}`, before it has filled in the defaults within: hence has(self.init).
    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "!has(self.init) || self.init != 'orthogonal' || self.rank % 2 == 0",
            "message": "init orthogonal needs an even rank",
            "fieldPath": ".rank",
        },
        {
            "rule": "!has(self.init) || !(self.init in ['pissa', 'olora', 'loftq']) || "
            "(self.bias == 'none' && (!has(self.modulesToSave) || self.modulesToSave.size() == 0))",
            "message": BEGINNING,
            "fieldPath": ".init",
        },
    ]

    @model_validator(mode="after")
    def _check_init(self) -> "LoraFields":
        if getattr(self, "init", None) in ("pissa", "olora", "loftq") and (self.bias != "none" or self.modules_to_save):
            raise ValueError(BEGINNING)
        if getattr(self, "init", None) == "orthogonal" and self.rank % 2:
            raise ValueError("init orthogonal needs an even rank")
        return self


class Lora(LoraFields):
    """Low-rank adaptation (peft.LoraConfig)."""

    default_learning_rate: ClassVar[float] = 2e-4

    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora"] = Field(
        "default",
        description="How the update matrices begin. pissa and olora begin with the base's largest directions; the adapter is then published as a plain LoRA of "
        "twice the rank.",
    )


class Quantization(Model):
    """How the frozen base weights are stored while the adapter trains (transformers.BitsAndBytesConfig)."""

    type: Literal["nf4", "fp4", "int8"] = Field(
        "nf4", description="The data type of the weights: 4-bit nf4 or fp4, or 8-bit int8 (LLM.int8)."
    )
    double_quantization: bool = Field(
        True, description="Quantise the quantisation constants as well. It does nothing for int8."
    )
    compute_dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto",
        description="Data type of the matrix products of nf4 and fp4. auto: that of spec.training.precision.",
    )


class Qlora(LoraFields):
    """LoRA on a base whose weights are held in 4 or 8 bits (bitsandbytes)."""

    default_learning_rate: ClassVar[float] = 2e-4

    init: Literal["default", "gaussian", "orthogonal", "loftq"] = Field(
        "default",
        description="How the update matrices begin. loftq begins with what the quantisation lost.",
    )
    quantization: Quantization = Field(default_factory=Quantization, description="How the base weights are held.")


class Dora(LoraFields):
    """Weight-decomposed low-rank adaptation (peft.LoraConfig with use_dora)."""

    default_learning_rate: ClassVar[float] = 1e-4

    init: Literal["default", "gaussian", "orthogonal"] = Field("default", description="How the update matrices begin.")
    quantization: Quantization | None = Field(
        None, description="Hold the base weights quantised (QDoRA). Unset: as they are."
    )


class Adalora(Targeted):
    """LoRA that moves its rank between modules while it trains (peft.AdaLoraConfig)."""

    default_learning_rate: ClassVar[float] = 1e-3

    init_rank: int = Field(12, description="Rank of each module at the beginning (init_r).", ge=1, le=512)
    target_rank: int = Field(8, description="Mean rank of the modules at the end (target_r).", ge=1, le=512)
    alpha: float = Field(32, description="Scaling numerator of the update.", gt=0)
    dropout: Rate = Field(0.0, description="Dropout on the adapter's input.")
    tinit: int | None = Field(
        None, description="Steps at the beginning with the first rank. Unset: a tenth of the steps.", ge=0
    )
    tfinal: int | None = Field(
        None, description="Steps at the end with the last rank. Unset: three tenths of the steps.", ge=0
    )
    delta_t: Positive = Field(1, description="Steps between two changes of the ranks (deltaT).")
    beta1: float = Field(0.85, description="Smoothing of the sensitivity.", gt=0, lt=1)
    beta2: float = Field(0.85, description="Smoothing of its uncertainty.", gt=0, lt=1)
    orth_reg_weight: float = Field(0.5, description="Weight of the orthogonality term in the loss.", gt=0)

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "self.targetRank < self.initRank",
            "message": "targetRank must be below initRank: AdaLoRA takes ranks away",
            "fieldPath": ".targetRank",
        }
    ]

    @model_validator(mode="after")
    def _ranks(self) -> "Adalora":
        if self.target_rank >= self.init_rank:
            raise ValueError("targetRank must be below initRank: AdaLoRA takes ranks away")
        return self


class Ia3(Targeted):
    """Learned scaling of keys, values and feed-forward activations (peft.IA3Config)."""

    default_learning_rate: ClassVar[float] = 5e-3

    target_modules: str | list[str] = _targets([])
    feedforward_modules: list[str] | None = Field(
        None,
        description="Those of targetModules whose input is scaled instead of their output, by their name's end. Unset: the architecture's defaults in PEFT.",
    )


class Vera(Targeted):
    """Learned scaling of random matrices that all modules share (peft.VeraConfig)."""

    default_learning_rate: ClassVar[float] = 4e-3

    rank: int = Field(256, description="Rank r of the shared random matrices.", ge=1, le=4096)
    dropout: Rate = Field(0.0, description="Dropout on the adapter's input.")
    d_initial: float = Field(0.1, description="First value of the trained vector d.", gt=0)
    projection_prng_key: int = Field(0, description="Seed of the shared random matrices.", ge=0)


class Lycoris(Targeted):
    """What LoHa and LoKr have in common."""

    rank_dropout: Rate = Field(0.0, description="Dropout on the rank dimension of the update.")
    module_dropout: Rate = Field(0.0, description="Probability that a module goes without its adapter in a step.")


class Loha(Lycoris):
    """Low-rank Hadamard product (peft.LoHaConfig)."""

    default_learning_rate: ClassVar[float] = 1e-4

    rank: int = Field(8, description="Rank r of each of the two factors.", ge=1, le=512)
    alpha: float = Field(8, description="Scaling numerator: the update is scaled by alpha / rank.", gt=0)


class Lokr(Lycoris):
    """Low-rank Kronecker product (peft.LoKrConfig)."""

    default_learning_rate: ClassVar[float] = 3e-3

    rank: int = Field(32, description="Rank r of the right factor.", ge=1, le=512)
    alpha: float = Field(64, description="Scaling numerator: the update is scaled by alpha / rank.", gt=0)
    decompose_both: bool = Field(False, description="Also decompose the left factor of the Kronecker product.")
    decompose_factor: int = Field(
        4, description="Size of the left factor; -1 chooses the one that makes both factors alike.", ge=-1
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "self.decomposeFactor != 0",
            "message": "decomposeFactor must be -1 or at least 1",
            "fieldPath": ".decomposeFactor",
        }
    ]

    @model_validator(mode="after")
    def _factor(self) -> "Lokr":
        if self.decompose_factor == 0:
            raise ValueError("decomposeFactor must be -1 or at least 1")
        return self


class Oft(Targeted):
    """Orthogonal fine-tuning: learned rotations of the weights (peft.OFTConfig)."""

    default_learning_rate: ClassVar[float] = 1e-4

    oft_block_size: int = Field(
        32,
        description="Size of the rotated blocks; where it does not divide a module's input, the nearest divisor is taken.",
        ge=2,
    )
    module_dropout: Rate = Field(0.0, description="Probability that a block is not rotated in a step.")
    coft: bool = Field(False, description="Keep the rotations near to the identity (constrained OFT).")
    eps: float | None = Field(None, description="How near, with coft. Unset: PEFT's own, 0.00006.", gt=0)
    block_share: bool = Field(False, description="Rotate all blocks of a module alike.")


class Miss(Targeted):
    """Matrix shard sharing (peft.MissConfig)."""

    default_learning_rate: ClassVar[float] = 1e-4

    rank: int = Field(64, description="Rank r of the shared shard.", ge=1, le=512)
    dropout: Rate = Field(0.0, description="Dropout on the adapter's input.")


class VirtualTokens(Block):
    """A method that puts learned tokens before the text."""

    num_virtual_tokens: int = Field(20, description="How many learned tokens.", ge=1, le=4096)


class PrefixTuning(VirtualTokens):
    """Learned keys and values before the text, in each layer (peft.PrefixTuningConfig)."""

    default_learning_rate: ClassVar[float] = 1e-3

    prefix_projection: bool = Field(False, description="Train the prefix through a two-layer network.")
    encoder_hidden_size: int | None = Field(
        None, description="Width of that network. Unset: the model's hidden size.", ge=1
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "!has(self.encoderHiddenSize) || self.prefixProjection",
            "message": "encoderHiddenSize belongs to prefixProjection: set it to true, or remove encoderHiddenSize",
            "fieldPath": ".encoderHiddenSize",
        }
    ]

    @model_validator(mode="after")
    def _projection(self) -> "PrefixTuning":
        if self.encoder_hidden_size is not None and not self.prefix_projection:
            raise ValueError(
                "encoderHiddenSize belongs to prefixProjection: set it to true, or remove encoderHiddenSize"
            )
        return self


class PromptTuning(VirtualTokens):
    """Learned embeddings before the text (peft.PromptTuningConfig)."""

    default_learning_rate: ClassVar[float] = 1e-3

    prompt_tuning_init: Literal["random", "sampleVocab", "text"] = Field(
        "sampleVocab",
        description="How the embeddings begin: at random, with those of random words, or with those of promptTuningInitText.",
    )
    prompt_tuning_init_text: str | None = Field(None, description="The text to begin with, for promptTuningInit text.")

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "has(self.promptTuningInitText) == (self.promptTuningInit == 'text')",
            "message": "promptTuningInit text and promptTuningInitText belong together: set both, or neither",
            "fieldPath": ".promptTuningInitText",
        }
    ]

    @model_validator(mode="after")
    def _text(self) -> "PromptTuning":
        if (self.prompt_tuning_init_text is not None) != (self.prompt_tuning_init == "text"):
            raise ValueError("promptTuningInit text and promptTuningInitText belong together: set both, or neither")
        return self


class PTuning(VirtualTokens):
    """Embeddings before the text that a small network learns (peft.PromptEncoderConfig)."""

    default_learning_rate: ClassVar[float] = 5e-4

    encoder_reparameterization_type: Literal["MLP", "LSTM"] = Field("MLP", description="Kind of that network.")
    encoder_hidden_size: int | None = Field(None, description="Its width. Unset: the model's hidden size.", ge=1)
    encoder_num_layers: Positive = Field(2, description="Layers of an LSTM; an MLP always has three.")
    encoder_dropout: Rate = Field(0.0, description="Dropout in an LSTM.")


class Bottleneck(Block):
    """Small layers put in series with those of the base: Houlsby et al. 2019, Pfeiffer et al. 2020."""

    default_learning_rate: ClassVar[float] = 1e-4

    placement: Literal["houlsby", "pfeiffer"] = Field(
        "houlsby", description="houlsby: after attention and feed-forward; pfeiffer: after feed-forward only."
    )
    reduction_factor: float = Field(
        16, description="Hidden size of the model divided by that of the adapter layer.", ge=1
    )
    non_linearity: Literal["relu", "gelu", "silu"] = Field("relu", description="Activation between its two matrices.")
    dropout: Rate = Field(0.0, description="Dropout on its input.")


class Full(Block):
    """All weights of the model are trained; the result is a model, not an adapter."""

    default_learning_rate: ClassVar[float] = 1e-5


UNSUITED = {
    "ADAMSS": "it needs scikit-learn, which the trainer does not have",
    "ADAPTION_PROMPT": "it takes the place of the model's forward pass, which TRL's trainers need",
    "MULTITASK_PROMPT_TUNING": "its rows must name a task",
    "POLY": "its rows must name a task",
    "SHADOW": "it needs a second model",
    "XLORA": "it mixes adapters that exist already",
}
"""Methods of PEFT that cannot train a causal language model on plain rows, each with the reason; found by trying every one."""


class Peft(Block):
    """Any other method of PEFT, by the names of PEFT's own configuration."""

    default_learning_rate: ClassVar[float] = 1e-4

    type: str = Field(
        description="PEFT's name of the method, for example LORA or BOFT (peft.PeftType).",
        pattern=r"^[A-Z0-9_]+$",
        max_length=64,
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Arguments of its configuration class, by PEFT's own names, for example {r: 8, target_modules: all-linear}.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )

    @model_validator(mode="after")
    def _known(self) -> "Peft":
        known = peft_tables.options(self.type)
        if known is None:
            raise ValueError(
                f"type: PEFT {peft_tables.version()} has no method {self.type}: {_nearest(self.type, peft_tables.peft_types())}"
            )
        if why := UNSUITED.get(self.type):
            raise ValueError(f"type: {self.type} cannot be trained here, because {why}: choose another method")
        for name in self.options:
            if name not in known:
                raise ValueError(
                    f"options: {self.type} has no option {name!r} in PEFT {peft_tables.version()}: {_nearest(name, known)}"
                )
        return self


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"it has: {', '.join(known)}"


class Method(Model):
    """The way to fine-tune: exactly one of the fields."""

    lora: Lora | None = Field(None, description="Low-rank adaptation.")
    qlora: Qlora | None = Field(None, description="Low-rank adaptation of a base held in 4 or 8 bits.")
    dora: Dora | None = Field(None, description="Weight-decomposed low-rank adaptation.")
    adalora: Adalora | None = Field(None, description="Low-rank adaptation that moves its rank between modules.")
    ia3: Ia3 | None = Field(None, description="Learned scaling of activations.")
    vera: Vera | None = Field(None, description="Learned scaling of shared random matrices.")
    loha: Loha | None = Field(None, description="Low-rank Hadamard product.")
    lokr: Lokr | None = Field(None, description="Low-rank Kronecker product.")
    oft: Oft | None = Field(None, description="Orthogonal fine-tuning.")
    miss: Miss | None = Field(None, description="Matrix shard sharing.")
    prefix_tuning: PrefixTuning | None = Field(None, description="Learned keys and values before the text.")
    prompt_tuning: PromptTuning | None = Field(None, description="Learned embeddings before the text.")
    p_tuning: PTuning | None = Field(None, description="Learned embeddings before the text, from a small network.")
    bottleneck: Bottleneck | None = Field(None, description="Small layers in series with those of the base.")
    full: Full | None = Field(None, description="All weights of the model.")
    peft: Peft | None = Field(None, description="Any other method of PEFT.")

    @model_validator(mode="after")
    def _one(self) -> "Method":
        if len(self._set()) != 1:
            raise ValueError(ONE_METHOD)
        return self

    def _set(self) -> list[str]:
        return [name for name in Method.model_fields if getattr(self, name) is not None]

    @property
    def name(self) -> str:
        """The field that is set, as it is written: ``lora``, ``prefixTuning``."""
        (name,) = self._set()
        return str(Method.model_fields[name].alias)

    @property
    def config(self) -> Block:
        """The one block that is set."""
        (name,) = self._set()
        block: Block = getattr(self, name)
        return block

    @property
    def quantization(self) -> Quantization | None:
        """How the base's weights are held; None: as they are."""
        block = self.config
        return block.quantization if isinstance(block, Qlora | Dora) else None


METHODS: tuple[str, ...] = tuple(str(field.alias) for field in Method.model_fields.values())
"""The names of all methods, as they are written."""
ONE_METHOD = f"exactly one method must be set: {', '.join(METHODS[:-1])} or {METHODS[-1]}"
Method.cel_rules = [
    {"rule": f"[{', '.join(f'has(self.{name})' for name in METHODS)}].filter(x, x).size() == 1", "message": ONE_METHOD}
]
