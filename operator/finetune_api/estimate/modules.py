"""Define the parts of a model that the estimate counts: modules with their shapes, and their attention."""

from dataclasses import dataclass
from typing import Literal

from finetune_api.linear import LINEAR_KINDS


class NotCountedError(ValueError):
    """The estimate has no closed form for this method on this model."""


Kind = Literal["linear", "conv1d", "embedding", "rmsNorm", "layerNorm", "router", "parameter"]
"""``router`` chooses experts and is no ``nn.Linear``. ``parameter`` is a parameter of a module, such as all experts."""


@dataclass(frozen=True)
class Module:
    """A module with weights.

    Attributes:
        name: Its full name in transformers.
        kind: Its type.
        inputs: Input features of a linear layer, rows of an embedding, or width of a norm; of a parameter, the product
            of all dimensions but one.
        outputs: Output features of a linear layer, width of an embedding, or width of a norm.
        bias: Whether it has a bias.
        tied: Whether its weight is that of the input embeddings.
    """

    name: str
    kind: Kind
    inputs: int
    outputs: int
    bias: bool = False
    tied: bool = False

    @property
    def weight(self) -> int:
        """Return the size of its weight; 0 for a tied one, which is counted with the embeddings."""
        if self.tied:
            return 0
        return self.outputs if self.kind.endswith("Norm") else self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        """Return the size of its weight and bias together."""
        return self.weight + (self.outputs if self.bias else 0)

    @property
    def is_linear(self) -> bool:
        """Return whether PEFT treats it as a linear layer: ``nn.Linear``, or GPT-2's ``Conv1D``."""
        return self.kind in LINEAR_KINDS


@dataclass(frozen=True)
class Attention:
    """The attention of a layer.

    Attributes:
        heads: Number of query heads.
        key_value_heads: Number of heads of the keys, and of the values.
        head_dim: Width of a head.
        quadratic: Whether the scores of all pairs of tokens are kept: transformers has no fused attention for it.
        latent: Further numbers that are kept for each token where keys and values come from a latent vector.
    """

    heads: int
    key_value_heads: int
    head_dim: int
    quadratic: bool = False
    latent: int = 0

    @property
    def query(self) -> int:
        """Return the width of the queries, and of attention's result."""
        return self.heads * self.head_dim

    @property
    def key_value(self) -> int:
        """Return the width of the keys, which is also that of the values."""
        return self.key_value_heads * self.head_dim


@dataclass(frozen=True)
class Architecture:
    """A causal language model: its sizes, and every module with weights under its name in transformers."""

    model_type: str
    vocabulary: int
    hidden: int
    layers: int
    intermediate: int
    attention: Attention
    modules: tuple[Module, ...]
    layer_prefix: str
    """The modules of layer ``n`` are named ``{layer_prefix}{n}.…``."""
    activation: Literal["gated", "clampedGated", "gelu", "relu", "tanhGelu"]
    """Activation of the feed-forward network.

    ``gelu`` and ``relu`` save their input. ``tanhGelu`` is computed in single operations, each of which saves its own.
    """
    prefix_heads: int
    """Heads of the keys and values that prefix tuning adds; 0 where they do not fit the attention.

    Source: peft/utils/other.py, ``_prepare_prompt_learning_config``.
    """
    prefix_width: int
    """Width of these keys, and of these values."""
    experts: int = 0
    """Experts of a layer; 0 for a model without experts."""
    experts_per_token: int = 0
    """Experts that compute each token. ``intermediate`` is their width together with that of a shared one."""

    @property
    def embeddings(self) -> Module:
        """Return the input embeddings."""
        return self.modules[0]

    @property
    def head(self) -> Module:
        """Return the output head."""
        return self.modules[-1]

    @property
    def parameters(self) -> int:
        """Return the number of parameters; a tied output head is counted once."""
        return sum(module.parameters for module in self.modules)

    def layer(self, number: int) -> list[Module]:
        """Return the modules of the layer with this number."""
        return [module for module in self.modules if module.name.startswith(f"{self.layer_prefix}{number}.")]
