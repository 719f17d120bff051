"""Define LoRA, QLoRA and DoRA: low-rank updates of linear layers (peft.LoraConfig)."""

import re
from collections.abc import Container, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from finetune_api.base import Model
from finetune_api.estimate.modules import Module
from finetune_api.estimate.step import Step, input_bytes
from finetune_api.limits import MAX_NUMBER
from finetune_api.methods.block import Rate, Targeted

PLAIN_LORA_ONLY = (
    "init pissa, olora and loftq cannot be combined with bias or modulesToSave, because the adapter is published as a "
    "plain LoRA without them: set bias to none and remove modulesToSave, or set init to default"
)
EVEN_RANK = "init orthogonal needs an even rank: change rank or init"
DORA_IDENTITY_BYTES = 5
"""DoRA computes the norm of an updated weight through an identity matrix as wide as the module's input.

Measured, in bytes per number of that matrix (peft/tuners/lora/dora.py).
"""


def matches_pattern(key: str, module: str) -> bool:
    """Return whether a key of ``rankPattern`` or ``alphaPattern`` matches a module's name, as PEFT matches it."""
    return bool(re.match(rf"(.*\.)?({key})$", module))


class LoraFields(Targeted):
    """The common fields of LoRA, QLoRA and DoRA (peft.LoraConfig)."""

    peft_type: ClassVar[str] = "LORA"
    supports_reward: ClassVar[bool] = True

    rank: int = Field(16, description="Rank r of the update matrices.", ge=1, le=512)
    alpha: float = Field(
        32, description="Scaling numerator: the update is scaled by alpha / rank.", gt=0, le=MAX_NUMBER
    )
    dropout: Rate = Field(0.0, description="Dropout on the adapter's input.")
    bias: Literal["none", "all", "lora_only"] = Field(
        "none",
        description="Biases of the base that are trained as well: none, all, or those of the adapted modules "
        "(lora_only).",
    )
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead (rank-stabilised LoRA).")
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=512)]] = Field(
        default_factory=dict,
        description="Ranks of some modules that differ from rank, by a module name suffix or a regular expression for "
        "it, for example {down_proj: 32}.",
    )
    alpha_pattern: dict[str, Annotated[float, Field(gt=0, le=MAX_NUMBER)]] = Field(
        default_factory=dict,
        description="Alphas of some modules that differ from alpha, with keys as in rankPattern.",
    )

    # The API server checks the default of spec.method, `lora: {}`, before it fills in the defaults within it.
    # The rules therefore ask for has(self.init) first.
    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "!has(self.init) || self.init != 'orthogonal' || self.rank % 2 == 0",
            "message": EVEN_RANK,
            "fieldPath": ".rank",
        },
        {
            "rule": "!has(self.init) || !(self.init in ['pissa', 'olora', 'loftq']) || "
            "(self.bias == 'none' && (!has(self.modulesToSave) || self.modulesToSave.size() == 0))",
            "message": PLAIN_LORA_ONLY,
            "fieldPath": ".init",
        },
    ]

    @model_validator(mode="after")
    def _check_init(self) -> "LoraFields":
        if self.changes_base and (self.bias != "none" or self.modules_to_save):
            raise ValueError(PLAIN_LORA_ONLY)
        if getattr(self, "init", None) == "orthogonal" and self.rank % 2:
            raise ValueError(EVEN_RANK)
        return self

    def rank_of(self, module: str) -> int:
        """Return the rank of a module: that of the first matching key of ``rankPattern``, or ``rank``."""
        return next((rank for key, rank in self.rank_pattern.items() if matches_pattern(key, module)), self.rank)

    def count_module_parameters(self, module: Module, scaled: Container[str]) -> int:
        """Return the numbers in A (r × in) and B (out × r): Hu et al. 2021, section 4.1."""
        return self.rank_of(module.name) * (module.inputs + module.outputs)

    def saved_bytes_per_token(self, adapted: Sequence[Module], scaled: Container[str], step: Step) -> float:
        """Return the bytes of the inputs, of A's results and of the dropout's mask."""
        mask = sum(module.inputs for module in adapted) if self.dropout else 0
        return input_bytes(adapted, step) + step.element * sum(self.rank_of(m.name) for m in adapted) + mask


class Lora(LoraFields):
    """Low-rank adaptation (peft.LoraConfig)."""

    default_learning_rate: ClassVar[float] = 2e-4
    supports_sharding: ClassVar[bool] = True
    gains_from_compilation: ClassVar[bool] = True
    base_changing_inits: ClassVar[tuple[str, ...]] = ("pissa", "olora")

    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora"] = Field(
        "default",
        description="Initialisation of the update matrices. pissa and olora start from the principal directions of "
        "the base's weights; the adapter is then published as a plain LoRA of twice the rank.",
    )

    def quantize(self) -> "Qlora | None":
        """Return the same adapter as QLoRA in nf4; None for pissa and olora, which need the base's own weights."""
        return None if self.changes_base else Qlora.model_validate(self.model_dump())


class Quantization(Model):
    """How the frozen base weights are stored while the adapter trains (transformers.BitsAndBytesConfig)."""

    type: Literal["nf4", "fp4", "int8"] = Field(
        "nf4", description="Data type of the weights: 4-bit nf4 or fp4, or 8-bit int8 (LLM.int8)."
    )
    double_quantization: bool = Field(
        True, description="Also quantise the quantisation constants. It has no effect with int8."
    )
    compute_dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto",
        description="Data type of the matrix products of nf4 and fp4. auto: that of spec.training.precision.",
    )


class Qlora(LoraFields):
    """LoRA on a base whose weights are held in 4 or 8 bits (bitsandbytes)."""

    default_learning_rate: ClassVar[float] = 2e-4
    gains_from_compilation: ClassVar[bool] = True
    base_changing_inits: ClassVar[tuple[str, ...]] = ("loftq",)

    init: Literal["default", "gaussian", "orthogonal", "loftq"] = Field(
        "default",
        description="Initialisation of the update matrices. loftq starts from the error of the quantisation.",
    )
    quantization: Quantization = Field(
        default_factory=Quantization, description="How the base weights are stored while the adapter trains."
    )

    @property
    def base_quantization(self) -> Quantization:
        """Return how the base's weights are quantised."""
        return self.quantization


class Dora(LoraFields):
    """Weight-decomposed low-rank adaptation (peft.LoraConfig with use_dora)."""

    default_learning_rate: ClassVar[float] = 1e-4
    transient_bytes: ClassVar[int] = 13

    init: Literal["default", "gaussian", "orthogonal"] = Field(
        "default", description="Initialisation of the update matrices."
    )
    quantization: Quantization | None = Field(
        None, description="Quantise the base weights (QDoRA). Unset: they are not quantised."
    )

    @property
    def base_quantization(self) -> Quantization | None:
        """Return how the base's weights are quantised; None if they are not."""
        return self.quantization

    def quantize(self) -> "Dora | None":
        """Return the same adapter on a base in nf4; None if the base is quantised already."""
        return None if self.quantization else self.model_copy(update={"quantization": Quantization()})

    def count_module_parameters(self, module: Module, scaled: Container[str]) -> int:
        """Return LoRA's parameters and one magnitude per output: Liu et al. 2024, section 4.1."""
        return super().count_module_parameters(module, scaled) + module.outputs

    def saved_bytes_per_token(self, adapted: Sequence[Module], scaled: Container[str], step: Step) -> float:
        """Return the bytes of LoRA's tensors and of both products that the magnitude scales."""
        outputs = sum(module.outputs for module in adapted)
        return super().saved_bytes_per_token(adapted, scaled, step) + step.element * 2 * outputs

    def saved_bytes_per_module(self, module: Module, scaled: Container[str], step: Step) -> float:
        """Return the bytes of cast weights, of the norms, and with dropout of a copy of the base's weight."""
        copied = 2 * module.inputs * module.outputs if self.dropout else 0
        return super().saved_bytes_per_module(module, scaled, step) + 12 * module.outputs + copied

    def identity_bytes(self, adapted: Sequence[Module]) -> float:
        """Return the bytes of the identity matrix through which PEFT computes the norm."""
        return DORA_IDENTITY_BYTES * max((module.inputs**2 for module in adapted), default=0)
