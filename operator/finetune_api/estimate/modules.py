"""What a model consists of, for counting: modules with their shapes, and how its layers attend."""

from dataclasses import dataclass
from typing import Literal

from finetune_api.linear import LINEAR_KINDS


class NotCountedError(ValueError):
    """There is no closed form for what a method does to a model."""


Kind = Literal["linear", "conv1d", "embedding", "rmsNorm", "layerNorm"]


@dataclass(frozen=True)
class Module:
    """One module with weights. A linear layer has ``inputs`` and ``outputs``; an embedding has rows and width there; a norm has its width in both."""

    name: str
    kind: Kind
    inputs: int
    outputs: int
    bias: bool = False
    tied: bool = False
    """Its weight is that of the input embeddings."""

    @property
    def weight(self) -> int:
        """Numbers in its weight; 0 for a tied one, which is counted where it is stored."""
        if self.tied:
            return 0
        return self.outputs if self.kind.endswith("Norm") else self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        """Numbers in its weight and bias."""
        return self.weight + (self.outputs if self.bias else 0)

    @property
    def is_linear(self) -> bool:
        """Whether PEFT takes it for a linear layer: ``nn.Linear``, or GPT-2's ``Conv1D``, which stores its weight transposed."""
        return self.kind in LINEAR_KINDS


@dataclass(frozen=True)
class Attention:
    """How a layer attends: ``query`` and ``key_value`` are the widths of the projected queries, and of keys and values each."""

    heads: int
    key_value_heads: int
    head_dim: int
    quadratic: bool = False
    """The scores of all pairs of tokens are held, because the architecture has no fused attention in transformers."""

    @property
    def query(self) -> int:
        """Width of the queries, and of what attention gives."""
        return self.heads * self.head_dim

    @property
    def key_value(self) -> int:
        """Width of the keys, and of the values."""
        return self.key_value_heads * self.head_dim


@dataclass(frozen=True)
class Architecture:
    """A causal language model: sizes, and every module that has weights, by the names that transformers gives them."""

    model_type: str
    vocabulary: int
    hidden: int
    layers: int
    intermediate: int
    attention: Attention
    modules: tuple[Module, ...]
    layer_prefix: str
    """The modules of layer ``n`` are named ``{layer_prefix}{n}.…``."""
    activation: Literal["gated", "gelu", "relu", "tanhGelu"]
    """The feed-forward network: gated; or one that computes its activation from a saved input, or tanhGelu, in single steps that each save theirs."""
    prefix_heads: int
    prefix_width: int
    """Heads, and width, of what prefix tuning puts before keys and values (peft/utils/other.py, _prepare_prompt_learning_config)."""

    @property
    def embeddings(self) -> Module:
        """The input embeddings."""
        return self.modules[0]

    @property
    def head(self) -> Module:
        """The output head."""
        return self.modules[-1]

    @property
    def parameters(self) -> int:
        """Numbers in all weights; a tied output head is counted once."""
        return sum(module.parameters for module in self.modules)

    def layer(self, number: int) -> list[Module]:
        """The modules of one layer."""
        return [module for module in self.modules if module.name.startswith(f"{self.layer_prefix}{number}.")]
