"""Define AdaLoRA: low-rank updates whose ranks move between modules during training (peft.AdaLoraConfig)."""

from collections.abc import Container, Sequence
from typing import ClassVar

from pydantic import Field, model_validator

from finetune_api.estimate.modules import Module
from finetune_api.estimate.step import Step, input_bytes
from finetune_api.limits import MAX_COUNT, MAX_NUMBER
from finetune_api.methods.block import Positive, Rate, Targeted

RANKS_FALL = "targetRank must be below initRank, because AdaLoRA only removes ranks: lower targetRank or raise initRank"
ALLOCATOR_BYTES = 12
"""The rank allocator holds three fp32 numbers per trained one (peft/tuners/adalora/layer.py, ``RankAllocator``)."""


class Adalora(Targeted):
    """LoRA that moves rank between modules during training (peft.AdaLoraConfig)."""

    peft_type: ClassVar[str] = "ADALORA"
    default_learning_rate: ClassVar[float] = 1e-3
    adapter_is_complete: ClassVar[bool] = False
    supports_reference_copy: ClassVar[bool] = False
    frozen_parameters_per_module: ClassVar[int] = 1
    transient_bytes: ClassVar[int] = 18

    init_rank: int = Field(12, description="Rank of each module at the start (init_r).", ge=1, le=512)
    target_rank: int = Field(8, description="Mean rank of the modules at the end (target_r).", ge=1, le=512)
    alpha: float = Field(32, description="Scaling numerator of the update.", gt=0, le=MAX_NUMBER)
    dropout: Rate = Field(0.0, description="Dropout on the adapter's input.")
    tinit: int | None = Field(
        None, description="Steps at the start with the initial rank. Unset: a tenth of the steps.", ge=0, le=MAX_COUNT
    )
    tfinal: int | None = Field(
        None, description="Steps at the end with the final rank. Unset: three tenths of the steps.", ge=0, le=MAX_COUNT
    )
    delta_t: Positive = Field(1, description="Steps between two changes of the ranks (deltaT).")
    beta1: float = Field(0.85, description="Smoothing of the sensitivity.", gt=0, lt=1)
    beta2: float = Field(0.85, description="Smoothing of the sensitivity's uncertainty.", gt=0, lt=1)
    orth_reg_weight: float = Field(
        0.5, description="Weight of the orthogonality term in the loss.", gt=0, le=MAX_NUMBER
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {"rule": "self.targetRank < self.initRank", "message": RANKS_FALL, "fieldPath": ".targetRank"}
    ]

    @model_validator(mode="after")
    def _check_ranks(self) -> "Adalora":
        if self.target_rank >= self.init_rank:
            raise ValueError(RANKS_FALL)
        return self

    def plan_schedule(self, steps: int) -> tuple[int, int]:
        """Return the steps with the initial rank, at the start, and those with the final rank, at the end.

        Raises:
            ValueError: They leave no step for the removal of ranks.
        """
        tinit = self.tinit if self.tinit is not None else steps // 10
        tfinal = self.tfinal if self.tfinal is not None else max(3 * steps // 10, 1)
        if tinit >= steps - tfinal:
            raise ValueError(
                f"tinit {tinit} and tfinal {tfinal} leave no step of {steps} for the removal of ranks: lower them, or "
                "train for longer"
            )
        return tinit, tfinal

    def count_module_parameters(self, module: Module, scaled: Container[str]) -> int:
        """Return the size of P (out × r), Λ (r) and Q (r × in) at the initial rank (Zhang et al. 2023, section 3.1)."""
        return self.init_rank * (module.inputs + module.outputs + 1)

    def saved_bytes_per_token(self, adapted: Sequence[Module], scaled: Container[str], step: Step) -> float:
        """Return the bytes of the inputs, of Q's results, of the outputs and of the dropout's mask."""
        results = sum(module.outputs for module in adapted) if step.mixed else 0
        mask = sum(module.inputs for module in adapted) if self.dropout else 0
        return input_bytes(adapted, step) + step.element * (len(adapted) * self.init_rank + results) + mask

    def state_bytes(self, trainable: int, adapted: Sequence[Module]) -> float:
        """Return the bytes of the rank allocator's state."""
        return ALLOCATOR_BYTES * trainable
