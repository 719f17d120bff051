"""Compute the bytes of each layer that a training step keeps for its backward pass.

The terms are those of the tensors that transformers 5.23 and PEFT 0.21 save. tests/estimate/test_memory.py compares
them with the tensors that autograd really saves on a CPU. Where CUDA's autocast differs from the CPU's (``layer_norm``
and ``pow`` run in fp32), the terms are CUDA's. The terms of each method stand in its block (finetune_api/methods).
"""

from dataclasses import dataclass

from finetune_api.estimate.expert_adapters import adapted_experts
from finetune_api.estimate.modules import Architecture, Module
from finetune_api.estimate.step import Step, cast_bytes, is_attention_output, shared_input_bytes
from finetune_api.estimate.targets import adapted_modules, scaled_inputs
from finetune_api.methods import Block, Method, Targeted

SCORES_BYTES = 6
"""Per pair of tokens and head where attention is not fused: softmax in fp32, and its copy in bf16.

Source: transformers, ``eager_attention_forward``.
"""
SOFTCAP_BYTES = 2
"""Gemma 2 also keeps the tanh of its capped scores."""
SCORES_TRANSIENT_BYTES = 7
"""Scratch while all scores of a layer are computed, per pair of tokens and head: measured on a CPU."""
TANH_GELU_BYTES = 14
"""Per feature of a GELU in single steps (transformers, ``NewGELUActivation``).

In fp32 the input of pow, the tanh and 1 + tanh; half the input in bf16.
"""

CLAMPED_NUMBERS = 7
"""Numbers per feature of gpt-oss's gate: two clamped inputs, the sigmoid and its argument, and the products' factors.

Source: transformers, ``GptOssExperts._apply_gate``.
"""
ROUTED_NUMBERS = 1
ROUTER_BYTES = 8
"""Per expert and token: the router's logits and probabilities in fp32."""


@dataclass(frozen=True)
class LayerActivations:
    """Bytes of one layer."""

    saved: float
    """Kept for the layer's backward pass."""
    entry: float
    """The layer's input alone."""
    transient: float
    """Scratch while the layer runs."""


def layer_activations(architecture: Architecture, method: Method, step: Step) -> LayerActivations:
    """Compute the bytes of one layer. The last layer stands for all."""
    block = method.config
    tokens = step.batch * (step.length + block.prepended_tokens)
    per_token = _norms(architecture, block, step) + _attention(architecture, block, step)
    per_token += _feed_forward(architecture, step)
    constant = identity = 0.0
    layer = architecture.layer(architecture.layers - 1)
    if block.trains_all_weights:
        linear = [module for module in layer if module.is_linear]
        per_token += _own_copies(linear, step) if step.mixed else shared_input_bytes(linear, step)
        constant += cast_bytes(sum(module.weight for module in linear), step)
    elif isinstance(block, Targeted):
        adapted = [module for module in adapted_modules(architecture, method) if module in layer]
        scaled = scaled_inputs(architecture, method)
        per_token += block.saved_bytes_per_token(adapted, scaled, step)
        constant += sum(block.saved_bytes_per_module(module, scaled, step) for module in adapted)
        identity = block.identity_bytes(adapted)
        own = [expert for expert in adapted_experts(architecture, method) if expert.module in layer]
        per_token += step.element * sum(expert.inputs * expert.uses_per_token for expert in own)
        # PEFT adds the update to a copy of the weights, and the products keep the copy
        constant += step.element * sum(expert.module.weight for expert in own)
        constant += cast_bytes(sum(expert.parameters for expert in own), step)
    else:
        added, constant = block.saved_bytes(architecture, step)
        per_token += added
    return LayerActivations(
        saved=tokens * per_token + constant,
        entry=tokens * residual_bytes(block, step) * architecture.hidden,
        transient=tokens * _transient(architecture, block, step) + identity,
    )


def residual_bytes(block: Block, step: Step) -> int:
    """Return the bytes of a number in the hidden states between layers: those of the embeddings' weights."""
    return 4 if block.trains_all_weights else step.element


def norm_bytes(width: int, kind: str, *, trained: bool) -> int:
    """Return the bytes per token of a norm.

    They are its input in fp32, its statistics, and the factor of a trained weight.
    """
    return 4 * width + (8 if kind == "layerNorm" else 4) + (4 * width if trained and kind == "rmsNorm" else 0)


def mask_bytes(step: Step) -> int:
    """Return the bytes of the mask's row of one token."""
    return step.element * step.length * (step.batch if step.packed else 1)


def _norms(architecture: Architecture, block: Block, step: Step) -> float:
    """Return the bytes per token of all norms of a layer."""
    attention, total = architecture.attention, 0
    for module in architecture.layer(0):
        if module.kind.endswith("Norm"):
            times = 1
            if module.outputs == attention.head_dim and "attn" in module.name:
                times = attention.heads if ".q_" in module.name else attention.key_value_heads
            total += times * norm_bytes(module.outputs, module.kind, trained=block.trains_all_weights)
    return total


def _attention(architecture: Architecture, block: Block, step: Step) -> float:
    """Return the bytes per token of queries, keys, values, result, and logarithms (fused attention) or scores."""
    attention, element = architecture.attention, step.element
    prefix = block.prefix_tokens
    keys = 1 + prefix / step.length
    repeated = attention.quadratic or step.masked or prefix > 0
    per_token = element * (2 * attention.query + 2 * keys * (attention.query if repeated else attention.key_value))
    if any(module.name.endswith(("qkv_proj", "attention.query_key_value")) for module in architecture.layer(0)):
        # The values are a view of the fused projection, all of which is kept.
        per_token += element * (attention.query + attention.key_value)
    # Queries, keys and values are cut out of projections, which are kept, and joined again.
    per_token += element * attention.latent
    if (step.masked or prefix) and not attention.quadratic:
        # Each layer keeps the mask in its own type (torch, ``convert_boolean_attn_mask``).
        per_token += mask_bytes(step) + element * prefix
    if not attention.quadratic:
        return per_token + 4 * attention.heads
    scores = SCORES_BYTES + (SOFTCAP_BYTES if architecture.model_type == "gemma2" else 0)
    return per_token + attention.heads * (step.length + prefix) * (scores if step.mixed else 2 * scores)


def _feed_forward(architecture: Architecture, step: Step) -> float:
    per_feature = {
        "gated": 3 * step.element,  # SiLU or GELU keeps its input, the product both its factors
        "clampedGated": CLAMPED_NUMBERS * step.element,
        "gelu": step.element,
        "relu": step.element,
        "tanhGelu": TANH_GELU_BYTES if step.mixed else 16,
    }[architecture.activation]
    # each expert's result is multiplied by the router's weight, and sorted by expert before and after
    routed = ROUTED_NUMBERS * architecture.experts_per_token * architecture.hidden * step.element
    return per_feature * architecture.intermediate + routed + ROUTER_BYTES * architecture.experts


def _own_copies(modules: list[Module], step: Step) -> float:
    """Return the bytes per token of the modules' cast inputs; attention's result is counted elsewhere."""
    return step.element * sum(module.inputs for module in modules if not is_attention_output(module))


def _transient(architecture: Architecture, block: Block, step: Step) -> float:
    """Return the scratch per token: that of the feed-forward network or, if greater, of all attention scores."""
    scores = architecture.attention.heads * step.length if architecture.attention.quadratic else 0
    return max(block.transient_bytes * architecture.intermediate, scores * SCORES_TRANSIENT_BYTES)
