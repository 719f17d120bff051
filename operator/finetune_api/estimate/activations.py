"""What a training step keeps for its backward pass, in bytes: a count of the tensors that transformers and PEFT save, layer by layer.

The terms are those of the code of transformers 5.23 and PEFT 0.21; tests/estimate/test_memory.py compares them with the tensors that autograd really
saves, on a CPU. Where CUDA's autocast is known to differ from the CPU's (``layer_norm`` and ``pow`` run in fp32), the terms are CUDA's.
"""

from dataclasses import dataclass

from finetune_api.estimate.modules import Architecture, Module
from finetune_api.estimate.parameters import bottleneck_width, of_module, oft_block_size, rank_of
from finetune_api.estimate.targets import scaled_inputs, targets
from finetune_api.methods import (
    Adalora,
    Bottleneck,
    Dora,
    Full,
    Ia3,
    Loha,
    Lokr,
    LoraFields,
    Method,
    Miss,
    Oft,
    PrefixTuning,
    Targeted,
    Vera,
    VirtualTokens,
)

SCORES_BYTES = 6
"""Per pair of tokens and head where attention is not fused: softmax in fp32, and its copy in bf16 (transformers, ``eager_attention_forward``)."""
SOFTCAP_BYTES = 2
"""Gemma 2 also keeps the tanh of its capped scores."""
SCORES_TRANSIENT_BYTES = 7
"""Highest need beside the saved tensors while all scores of a layer are computed, per pair of tokens and head: measured on a CPU."""
TANH_GELU_BYTES = 14
"""Per feature of a GELU in single steps (transformers, ``NewGELUActivation``): the input of pow, the tanh and 1 + tanh in fp32, half the input in bf16."""
OFT_COPIES = 7
"""Powers of the skew-symmetric matrix that its Cayley-Neumann series keeps (peft/tuners/oft/layer.py)."""
TRANSIENT_BYTES: dict[type, int] = {Adalora: 18, Oft: 15, Dora: 13, Ia3: 13, Vera: 12}
"""Highest need beside the saved tensors while one layer runs, in bytes per token and feed-forward feature in mixed precision: measured on a CPU."""
OTHER_TRANSIENT_BYTES = 9
"""The same for all other methods."""
DORA_IDENTITY_BYTES = 5
"""DoRA takes the norm of an updated weight through an identity matrix as wide as the module's input (peft/tuners/lora/dora.py); per number of it, measured."""


@dataclass(frozen=True)
class Step:
    """One micro-step: ``batch`` sequences of ``length`` tokens; ``mixed``: bf16 or fp16 products beside fp32 trained weights."""

    batch: int
    length: int
    mixed: bool = True
    masked: bool = False
    """Attention has a mask of its own, because rows are padded or packed: then grouped keys and values are repeated for each head."""
    packed: bool = False
    """TRL lays the rows of a packed batch end to end, so that the mask is as wide as all of them."""

    @property
    def element(self) -> int:
        """Bytes of a number in most activations."""
        return 2 if self.mixed else 4


@dataclass(frozen=True)
class LayerActivations:
    """Bytes of one layer: ``saved`` for its backward pass, ``entry`` its input alone, and ``transient`` while it runs."""

    saved: float
    entry: float
    transient: float


def layer_activations(architecture: Architecture, method: Method, step: Step) -> LayerActivations:
    """What one layer keeps. A middle layer stands for all."""
    block = method.config
    tokens = step.batch * (step.length + virtual_tokens(block))
    per_token = _norms(architecture, block, step) + _attention(architecture, block, step)
    per_token += _feed_forward(architecture, step)
    constant = identity = 0.0
    layer = architecture.layer(architecture.layers - 1)
    if isinstance(block, Full):
        linear = [module for module in layer if module.is_linear]
        per_token += _own_copies(linear, step) if step.mixed else _shared_inputs(linear, step)
        constant += casts(sum(module.weight for module in linear), step)
    elif isinstance(block, Bottleneck):
        width, times = bottleneck_width(block, architecture), 2 if block.placement == "houlsby" else 1
        per_token += times * step.element * (architecture.hidden + 2 * width)
        constant += casts(times * 2 * architecture.hidden * width, step)
    elif isinstance(block, Targeted):
        adapted = [module for module in targets(architecture, method) if module in layer]
        scaled = scaled_inputs(architecture, method)
        per_token += _adapters_per_token(block, adapted, scaled, step)
        constant += sum(_adapter_constant(block, module, scaled, step) for module in adapted)
        if isinstance(block, Dora):
            identity = DORA_IDENTITY_BYTES * max((module.inputs**2 for module in adapted), default=0)
    return LayerActivations(
        saved=tokens * per_token + constant,
        entry=tokens * residual_bytes(block, step) * architecture.hidden,
        transient=tokens * _transient(architecture, block, step) + identity,
    )


def virtual_tokens(block: object) -> int:
    """Tokens that the method puts before each row; those of prefix tuning are keys and values only."""
    return block.num_virtual_tokens if isinstance(block, VirtualTokens) and not isinstance(block, PrefixTuning) else 0


def residual_bytes(block: object, step: Step) -> int:
    """Bytes of a number of the hidden states between layers: those of the embeddings' weights."""
    return 4 if isinstance(block, Full) else step.element


def casts(weights: int, step: Step) -> int:
    """The copies in bf16 that autocast makes of trained weights."""
    return 2 * weights if step.mixed else 0


def norm_bytes(width: int, kind: str, trained: bool) -> int:
    """Per token: a norm's input in fp32 and its statistics, and what it multiplies with a trained weight."""
    return 4 * width + (8 if kind == "layerNorm" else 4) + (4 * width if trained and kind == "rmsNorm" else 0)


def _norms(architecture: Architecture, block: object, step: Step) -> float:
    attention, total = architecture.attention, 0
    for module in architecture.layer(0):
        if module.kind.endswith("Norm"):
            times = 1
            if module.outputs == attention.head_dim and "attn" in module.name:
                times = attention.heads if ".q_" in module.name else attention.key_value_heads
            total += times * norm_bytes(module.outputs, module.kind, isinstance(block, Full))
    return total


def _attention(architecture: Architecture, block: object, step: Step) -> float:
    """Queries, keys, values and the result, with fused attention's logarithms or all scores."""
    attention, element = architecture.attention, step.element
    prefix = block.num_virtual_tokens if isinstance(block, PrefixTuning) else 0
    keys = 1 + prefix / step.length
    repeated = attention.quadratic or step.masked or prefix > 0
    per_token = element * (2 * attention.query + 2 * keys * (attention.query if repeated else attention.key_value))
    if any(module.name.endswith(("qkv_proj", "attention.query_key_value")) for module in architecture.layer(0)):
        # the values are a view of the fused projection, all of which is kept
        per_token += element * (attention.query + attention.key_value)
    if (step.masked or prefix) and not attention.quadratic:
        # each layer keeps the mask in its own type (torch, ``convert_boolean_attn_mask``)
        per_token += mask_bytes(step) + element * prefix
    if not attention.quadratic:
        return per_token + 4 * attention.heads
    scores = SCORES_BYTES + (SOFTCAP_BYTES if architecture.model_type == "gemma2" else 0)
    return per_token + attention.heads * (step.length + prefix) * (scores if step.mixed else 2 * scores)


def _feed_forward(architecture: Architecture, step: Step) -> float:
    per_feature = {
        "gated": 3 * step.element,  # SiLU or GELU keeps its input, the product both its factors
        "gelu": step.element,
        "relu": step.element,
        "tanhGelu": TANH_GELU_BYTES if step.mixed else 16,
    }[architecture.activation]
    return per_feature * architecture.intermediate


def _own_copies(modules: list[Module], step: Step) -> float:
    """Each module keeps a cast copy of its input; attention's result is kept already where nothing casts it."""
    return step.element * sum(module.inputs for module in modules if not is_attention_output(module))


def _shared_inputs(modules: list[Module], step: Step) -> float:
    """Modules with the same input keep it once."""
    groups = {_input(module): module.inputs for module in modules if not is_attention_output(module)}
    return step.element * sum(groups.values())


def is_attention_output(module: Module) -> bool:
    """Whether the module projects what attention gives."""
    return module.name.endswith(("attn.c_proj", ".o_proj", ".out_proj", "attn.dense", "attention.dense"))


def _input(module: Module) -> str:
    """A name for the module's input: that of attention, of the feed-forward network, or the activation's result."""
    if module.name.endswith(("down_proj", "mlp.c_proj", "4h_to_h", "fc2", "fc_out")):
        return "activation"
    return "feed-forward" if ".mlp." in module.name or module.name.endswith("fc1") else "attention"


def _adapters_per_token(block: Targeted, adapted: list[Module], scaled: frozenset[str], step: Step) -> float:
    element, mixed = step.element, step.mixed
    inputs = sum(module.inputs for module in adapted)
    outputs = sum(module.outputs for module in adapted)
    copies = element * inputs if mixed else _shared_inputs(adapted, step)
    match block:
        case Dora():
            masks = inputs if block.dropout else 0
            ranks = sum(rank_of(block, module) for module in adapted)
            return copies + element * (ranks + 2 * outputs) + masks
        case LoraFields():
            masks = inputs if block.dropout else 0
            return copies + element * sum(rank_of(block, module) for module in adapted) + masks
        case Adalora():
            results = outputs if mixed else 0
            return copies + element * (len(adapted) * block.init_rank + results) + (inputs if block.dropout else 0)
        case Ia3():
            before = sum(module.inputs for module in adapted if module.name in scaled)
            behind = sum(module.outputs for module in adapted if module.name not in scaled)
            return 4 * before + element * behind
        case Vera():
            return element * (outputs + len(adapted) * block.rank) + (inputs if block.dropout else 0)
        case Lokr() | Oft():
            return copies
        case Loha():
            return _shared_inputs(adapted, step)
        case Miss():
            return element * len(adapted) * block.rank + (inputs if block.dropout else 0)
    return copies


def _adapter_constant(block: Targeted, module: Module, scaled: frozenset[str], step: Step) -> float:
    """Bytes that do not grow with the batch: cast weights, and weight updates that are multiplied out."""
    size, element = module.inputs * module.outputs, step.element
    weights = casts(of_module(block, module, scaled), step)
    match block:
        case Dora():
            return weights + 12 * module.outputs + (2 * size if block.dropout else 0)
        case Vera():
            return step.element * block.rank * (module.inputs + module.outputs) if step.mixed else 0
        case Ia3():
            return 4 * of_module(block, module, scaled)
        case Loha() | Lokr():
            return element * size
        case Oft():
            return OFT_COPIES * 2 * module.inputs * oft_block_size(module, block)
    return weights


def _transient(architecture: Architecture, block: object, step: Step) -> float:
    """Per token: the greater need of the feed-forward network and, where all scores are computed, of attention."""
    scores = architecture.attention.heads * step.length if architecture.attention.quadratic else 0
    features = TRANSIENT_BYTES.get(type(block), OTHER_TRANSIENT_BYTES) * architecture.intermediate
    return max(features, scores * SCORES_TRANSIENT_BYTES)


def mask_bytes(step: Step) -> int:
    """Per token: a row of the mask."""
    return step.element * step.length * (step.batch if step.packed else 1)
