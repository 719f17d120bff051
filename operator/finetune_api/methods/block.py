"""Define the base classes of the methods: the facts that each states about itself, and common fields."""

import re
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from finetune_api.base import Model
from finetune_api.estimate.modules import Architecture, Module, NotCountedError
from finetune_api.estimate.step import Step, cast_bytes, input_bytes
from finetune_api.limits import MAX_COUNT

if TYPE_CHECKING:
    from finetune_api.methods.lora import Quantization

ALL_LINEAR = "all-linear"
"""PEFT's word for every linear layer except the output head."""
AUTO = "auto"
"""All linear layers or, in a mixture of experts, those of attention."""

Positive = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Rate = Annotated[float, Field(ge=0, lt=1)]


class Block(Model):
    """A method of ``spec.method``: its fields, the facts that rules read, and its terms of the estimate."""

    peft_type: ClassVar[str]
    """Name in ``peft.PeftType``; FULL and BOTTLENECK for what PEFT does not have."""
    default_learning_rate: ClassVar[float]
    """Peak learning rate where ``spec.training.learningRate`` is unset; docs/methods.md gives its source."""
    trains_all_weights: ClassVar[bool] = False
    """The result is a model instead of an adapter."""
    is_prompt_learning: ClassVar[bool] = False
    """It puts learned tokens, or their keys and values, before the text."""
    prepends_keys_and_values: ClassVar[bool] = False
    """It puts learned keys and values before those of each attention layer."""
    is_mergeable: ClassVar[bool] = True
    """Its update can be added to the base's weights."""
    adapter_is_complete: ClassVar[bool] = True
    """The published adapter holds all that was trained, so that another job can start from it."""
    supports_reward: ClassVar[bool] = False
    """It can train the head of a reward model beside the adapter."""
    supports_sharding: ClassVar[bool] = False
    """It can train while the base is sharded over several GPUs."""
    supports_reference_copy: ClassVar[bool] = True
    """PEFT can hold a second, frozen adapter of this type, which DPO and KTO need."""
    gains_from_compilation: ClassVar[bool] = False
    """``training.compile: auto`` compiles the layers of long runs on a GPU."""
    base_changing_inits: ClassVar[tuple[str, ...]] = ()
    """Values of ``init`` that move a part of the base, or of its quantisation error, into the adapter."""
    transient_bytes: ClassVar[int] = 9
    """Scratch of a layer in mixed precision, in bytes per token and feed-forward feature: measured on a CPU."""

    @property
    def changes_base(self) -> bool:
        """Return whether ``init`` moves a part of the base into the adapter."""
        return getattr(self, "init", None) in self.base_changing_inits

    @property
    def base_quantization(self) -> "Quantization | None":
        """Return how the base's weights are quantised; None if they are not."""
        return None

    @property
    def prepended_tokens(self) -> int:
        """Return how many learned tokens are put before each row's embeddings."""
        return 0

    @property
    def prefix_tokens(self) -> int:
        """Return how many learned keys and values are put before those of each attention layer."""
        return 0

    def quantize(self) -> "Block | None":
        """Return the same adapter on a base in 4 bits; None if there is none, or the base is quantised already."""
        return None

    def count_parameters(self, architecture: Architecture) -> int:
        """Return the trainable parameters of a method that adapts no chosen modules.

        Raises:
            NotCountedError: There is no closed form.
        """
        raise NotCountedError(f"the estimate has no closed form for {type(self).__name__}")

    def saved_bytes(self, architecture: Architecture, step: Step) -> tuple[float, float]:
        """Return what a method without target modules adds to one layer's saved tensors.

        Returns:
            Bytes per token, and bytes that do not grow with the batch.
        """
        return 0.0, 0.0


def targets_field(default: str | list[str]) -> Any:
    """Return the field ``targetModules`` with a method's own default."""
    default_text = AUTO if default == AUTO else "an empty list"
    return Field(
        default,
        description="Modules that get an adapter: auto, which is all-linear or, in a mixture of experts, the attention "
        "layers, because no engine serves adapted experts; all-linear; a list of module name suffixes such as "
        "[q_proj, v_proj]; an empty list for the architecture's defaults in PEFT or, where it has none, queries and "
        "values (of IA³ keys, values and the end of the feed-forward network); or a regular expression that matches "
        f"full module names. Default: {default_text}.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )


class Targeted(Block):
    """A method that adapts chosen modules of the base."""

    adapts_conv1d: ClassVar[bool] = True
    """PEFT implements it for GPT-2's ``Conv1D`` as well as for ``nn.Linear``."""
    frozen_parameters_per_module: ClassVar[int] = 0
    """Parameters of an adapted module that PEFT counts but does not train."""

    target_modules: str | list[str] = targets_field(AUTO)
    modules_to_save: list[str] = Field(
        default_factory=list,
        description="Modules that are fully trained and saved with the adapter, by the last part of their name, "
        "for example [lm_head].",
    )

    @model_validator(mode="after")
    def _check_targets(self) -> "Targeted":
        targets = self.target_modules
        if isinstance(targets, list):
            if not all(targets):
                raise ValueError("targetModules: the list contains an empty name: remove it")
            if keyword := next((name for name in targets if name.lower() in (AUTO, ALL_LINEAR)), ""):
                raise ValueError(
                    f"targetModules: {keyword} is no module's name: write targetModules: {keyword.lower()}, not a list"
                )
        elif targets not in (AUTO, ALL_LINEAR):
            _check_expression(targets)
        return self

    def count_module_parameters(self, module: Module, scaled: Container[str]) -> int:
        """Return the trainable parameters of one adapted module.

        Args:
            module: The adapted module.
            scaled: Names of the modules whose input is scaled instead of their output (IA³).
        """
        raise NotCountedError(f"the estimate has no closed form for {type(self).__name__}")

    def saved_bytes_per_token(self, adapted: Sequence[Module], scaled: Container[str], step: Step) -> float:
        """Return the bytes per token that the adapted modules of one layer keep for the backward pass."""
        return input_bytes(adapted, step)

    def saved_bytes_per_module(self, module: Module, scaled: Container[str], step: Step) -> float:
        """Return the bytes that one module keeps whatever the batch: cast weights and products of weights."""
        return cast_bytes(self.count_module_parameters(module, scaled), step)

    def identity_bytes(self, adapted: Sequence[Module]) -> float:
        """Return the scratch bytes of one layer that do not grow with the batch."""
        return 0.0

    def state_bytes(self, trainable: int, adapted: Sequence[Module]) -> float:
        """Return the bytes of fp32 state that the method keeps in addition to the trained parameters."""
        return 0.0


def _check_expression(expression: str) -> None:
    if (keyword := expression.strip().lower().replace("_", "-")) in (AUTO, ALL_LINEAR):
        raise ValueError(f"targetModules: found {expression!r}: write {keyword}")
    names = re.split(r"[,;\s]+", expression.strip(" \t,;[]"))
    if len(names) > 1 and all(re.fullmatch(r"[\w.]+", name) for name in names):
        raise ValueError(f"targetModules: found {expression!r}: write a list: [{', '.join(names)}]")
    if re.fullmatch(r"\w*", expression):
        raise ValueError(
            f"targetModules: {expression!r} is read as a regular expression for full module names, and matches none: "
            f"write a list, for example [{expression or 'q_proj'}], or all-linear"
        )
    try:
        re.compile(expression)
    except re.error as error:
        raise ValueError(
            f"targetModules: {expression!r} is neither all-linear nor a regular expression ({error}): correct it, "
            "or write a list of module names"
        ) from error


class VirtualTokens(Block):
    """A method that puts learned tokens before the text."""

    is_prompt_learning: ClassVar[bool] = True
    is_mergeable: ClassVar[bool] = False

    num_virtual_tokens: int = Field(20, description="Number of learned tokens.", ge=1, le=4096)

    @property
    def prepended_tokens(self) -> int:
        """Return how many learned tokens are put before each row's embeddings."""
        return self.num_virtual_tokens

    def check_width(self, architecture: Architecture) -> None:
        """Check that learned tokens, which PEFT makes as wide as the hidden states, fit the embeddings.

        Raises:
            NotCountedError: The embeddings are narrower.
        """
        if architecture.embeddings.outputs != architecture.hidden:
            raise NotCountedError(
                f"PEFT's learned tokens do not fit the embeddings of this {architecture.model_type}, which are "
                "narrower than its layers: use lora"
            )
