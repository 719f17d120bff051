"""Define LoHa and LoKr: updates as a Hadamard or a Kronecker product (peft.LoHaConfig, peft.LoKrConfig)."""

from collections.abc import Container, Sequence
from typing import ClassVar

from pydantic import Field, model_validator

from finetune_api.estimate.modules import Module
from finetune_api.estimate.step import Step, shared_input_bytes
from finetune_api.limits import MAX_COUNT, MAX_NUMBER
from finetune_api.methods.block import Rate, Targeted

FACTOR_NOT_ZERO = "decomposeFactor 0 is not possible: write -1 or a number from 1"


class Lycoris(Targeted):
    """The common fields of LoHa and LoKr."""

    adapts_conv1d: ClassVar[bool] = False

    rank_dropout: Rate = Field(0.0, description="Dropout on the rank dimension of the update.")
    module_dropout: Rate = Field(0.0, description="Probability that a module skips its adapter in a step.")

    def saved_bytes_per_module(self, module: Module, scaled: Container[str], step: Step) -> float:
        """Return the bytes of the update, which is multiplied out to a full matrix."""
        return step.element * module.inputs * module.outputs


class Loha(Lycoris):
    """Low-rank Hadamard product (peft.LoHaConfig)."""

    peft_type: ClassVar[str] = "LOHA"
    default_learning_rate: ClassVar[float] = 1e-4

    rank: int = Field(8, description="Rank r of each of the two factors.", ge=1, le=512)
    alpha: float = Field(8, description="Scaling numerator: the update is scaled by alpha / rank.", gt=0, le=MAX_NUMBER)

    def count_module_parameters(self, module: Module, scaled: Container[str]) -> int:
        """Return the numbers in two low-rank products: Hyeon-Woo et al. 2021 (FedPara), section 2.2."""
        return 2 * self.rank * (module.inputs + module.outputs)

    def saved_bytes_per_token(self, adapted: Sequence[Module], scaled: Container[str], step: Step) -> float:
        """Return the bytes of the inputs, which modules share."""
        return shared_input_bytes(adapted, step)


class Lokr(Lycoris):
    """Low-rank Kronecker product (peft.LoKrConfig)."""

    peft_type: ClassVar[str] = "LOKR"
    default_learning_rate: ClassVar[float] = 3e-3

    rank: int = Field(32, description="Rank r of the right factor.", ge=1, le=512)
    alpha: float = Field(
        64, description="Scaling numerator: the update is scaled by alpha / rank.", gt=0, le=MAX_NUMBER
    )
    decompose_both: bool = Field(False, description="Also decompose the left factor of the Kronecker product.")
    decompose_factor: int = Field(
        4,
        description="Size of the left factor. -1: the size with which both factors are most alike.",
        ge=-1,
        le=MAX_COUNT,
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {"rule": "self.decomposeFactor != 0", "message": FACTOR_NOT_ZERO, "fieldPath": ".decomposeFactor"}
    ]

    @model_validator(mode="after")
    def _check_factor(self) -> "Lokr":
        if self.decompose_factor == 0:
            raise ValueError(FACTOR_NOT_ZERO)
        return self

    def count_module_parameters(self, module: Module, scaled: Container[str]) -> int:
        """Return the numbers in both factors: Yeh et al. 2023 (LyCORIS), section 3.2; peft/tuners/lokr/layer.py.

        The left factor is a full matrix, or low-rank with ``decomposeBoth``. The right factor is low-rank, unless the
        full matrix is no larger.
        """
        inputs = factorization(module.inputs, self.decompose_factor)
        outputs = factorization(module.outputs, self.decompose_factor)
        left, right = outputs[0] * inputs[0], outputs[1] * inputs[1]
        if self.decompose_both and self.rank < max(outputs[0], inputs[0]) / 2:
            left = self.rank * (outputs[0] + inputs[0])
        if self.rank < max(outputs[1], inputs[1]) / 2:
            right = self.rank * (outputs[1] + inputs[1])
        return left + right


def factorization(dimension: int, factor: int) -> tuple[int, int]:
    """Split a dimension into two factors, as peft/tuners/lokr/layer.py does.

    Args:
        dimension: Number of features.
        factor: Preferred smaller factor; -1 for two factors that are as alike as possible.

    Returns:
        The smaller factor, then the larger one.
    """
    if factor > 0 and dimension % factor == 0:
        return factor, dimension // factor
    limit = dimension if factor == -1 else factor
    small, large = 1, dimension
    while small < large:
        candidate = small + 1
        while dimension % candidate:
            candidate += 1
        if candidate + dimension // candidate > small + large or candidate > limit:
            break
        small, large = candidate, dimension // candidate
    return min(small, large), max(small, large)
