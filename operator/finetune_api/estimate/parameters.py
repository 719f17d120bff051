"""How many parameters a method trains, and how many the tuned model has: PEFT's own count, in closed form."""

import math
from collections.abc import Container
from dataclasses import dataclass

from finetune_api.estimate.modules import Architecture, Module
from finetune_api.estimate.targets import is_saved, scaled_inputs, targets
from finetune_api.methods import (
    Adalora,
    Block,
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
    Peft,
    PrefixTuning,
    PromptTuning,
    PTuning,
    Targeted,
    Vera,
)
from finetune_api.targets import of_module as rank_of_module


class NotCountedError(ValueError):
    """There is no closed form for what the method does to this model."""


@dataclass(frozen=True)
class Counts:
    """What ``peft.PeftModel.get_nb_trainable_parameters`` gives: ``trainable``, and ``total`` of base and adapter."""

    trainable: int
    total: int


def count(architecture: Architecture, method: Method) -> Counts:
    """The counts for a method on a model. Raises TargetError and NotCountedError."""
    block = method.config
    if isinstance(block, Full):
        return Counts(architecture.parameters, architecture.parameters)
    if isinstance(block, Targeted):
        adapted = targets(architecture, method)
        scaled = scaled_inputs(architecture, method)
        adapter = sum(of_module(block, module, scaled) for module in adapted)
        frozen = len(adapted) if isinstance(block, Adalora) else 0
        saved = _saved(architecture, block)
        biases = _biases(architecture, block, adapted)
        return Counts(adapter + saved + biases, architecture.parameters + adapter + saved + frozen)
    adapter = _of_model(block, architecture)
    return Counts(adapter, architecture.parameters + adapter)


def rank_of(block: LoraFields, module: Module) -> int:
    """The rank of one module, which rankPattern may set."""
    return rank_of_module(block.rank_pattern, module.name, block.rank)


def of_module(block: Targeted, module: Module, scaled: Container[str]) -> int:
    """Trainable parameters of one adapted module; ``scaled`` are those whose input IA³ scales (Liu et al. 2022, section 3.3). Raises NotCountedError."""
    match block:
        case Dora():
            return lora(module, rank_of(block, module)) + module.outputs  # the magnitude: Liu et al. 2024, section 4.1
        case LoraFields():
            return lora(module, rank_of(block, module))
        case Adalora():
            return adalora(module, block.init_rank)
        case Ia3():
            return module.inputs if module.name in scaled else module.outputs
        case Vera():
            return vera(module, block.rank)
        case Lokr():
            return lokr(_linear(module, "lokr"), block)
        case Loha():
            return loha(_linear(module, "loha"), block.rank)
        case Oft():
            return oft(_linear(module, "oft"), block)
        case Miss():
            return miss(_linear(module, "miss"), block.rank)
    raise NotCountedError(f"the estimate has no closed form for {type(block).__name__}")


def lora(module: Module, rank: int) -> int:
    """A (r × in) and B (out × r): Hu et al. 2021, section 4.1."""
    return rank * (module.inputs + module.outputs)


def adalora(module: Module, rank: int) -> int:
    """P (out × r), the diagonal Λ (r) and Q (r × in), at the first rank: Zhang et al. 2023, section 3.1."""
    return rank * (module.inputs + module.outputs + 1)


def vera(module: Module, rank: int) -> int:
    """The vectors d (r) and b (out); the shared matrices are frozen and no parameters: Kopiczko et al. 2023, section 3.1."""
    return rank + module.outputs


def loha(module: Module, rank: int) -> int:
    """Two products of low rank, multiplied element by element: Hyeon-Woo et al. 2021 (FedPara), section 2.2."""
    return 2 * rank * (module.inputs + module.outputs)


def lokr(module: Module, block: Lokr) -> int:
    """The left factor of the Kronecker product whole or, with decomposeBoth, of low rank; the right one of low rank, unless that would be no smaller.

    Yeh et al. 2023 (LyCORIS), section 3.2; peft/tuners/lokr/layer.py.
    """
    inputs = factorization(module.inputs, block.decompose_factor)
    outputs = factorization(module.outputs, block.decompose_factor)
    left, right = outputs[0] * inputs[0], outputs[1] * inputs[1]
    if block.decompose_both and block.rank < max(outputs[0], inputs[0]) / 2:
        left = block.rank * (outputs[0] + inputs[0])
    if block.rank < max(outputs[1], inputs[1]) / 2:
        right = block.rank * (outputs[1] + inputs[1])
    return left + right


def factorization(dimension: int, factor: int) -> tuple[int, int]:
    """Two factors of ``dimension``, the smaller first and near to ``factor`` (-1: as alike as can be): peft/tuners/lokr/layer.py."""
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


def oft(module: Module, block: Oft) -> int:
    """The upper half of a skew-symmetric b × b matrix for each of in / b blocks, or for one that all share: Qiu et al. 2023, section 3."""
    size = oft_block_size(module, block)
    return (1 if block.block_share else module.inputs // size) * size * (size - 1) // 2


def oft_block_size(module: Module, block: Oft) -> int:
    """The divisor of the module's input that is nearest to ``oftBlockSize``, the smaller of two: peft/tuners/oft/layer.py."""
    wanted, inputs = block.oft_block_size, module.inputs
    if wanted >= inputs:
        return inputs
    lower = next(size for size in range(wanted, 0, -1) if inputs % size == 0)
    higher = next(size for size in range(wanted, inputs + 1) if inputs % size == 0)
    return lower if wanted - lower <= higher - wanted else higher


def miss(module: Module, rank: int) -> int:
    """One shard (r × out): Kang and Yin 2024, section 3; peft/tuners/miss/layer.py."""
    return rank * module.outputs


def prefix_tuning(block: PrefixTuning, architecture: Architecture) -> int:
    """A key and a value for each token and layer, or the network that makes them: Li and Liang 2021, sections 4.2 and 4.3.

    Peft/tuners/prefix_tuning/model.py; where config.json says num_key_value_heads, the prefix is as wide as those.
    """
    if architecture.attention.key_value_heads == 1 and architecture.prefix_heads > 1:
        raise NotCountedError(f"PEFT's prefix does not fit the attention of this {architecture.model_type}: use lora")
    width, tokens = architecture.prefix_width, block.num_virtual_tokens
    outputs = 2 * architecture.layers * width
    if not block.prefix_projection:
        return tokens * outputs
    inner = block.encoder_hidden_size or width
    return tokens * width + (width + 1) * inner + (inner + 1) * outputs


def prompt_tuning(block: PromptTuning, architecture: Architecture) -> int:
    """An embedding for each token: Lester et al. 2021, section 2."""
    if block.prompt_tuning_init == "random":
        _check_width(architecture)
    return block.num_virtual_tokens * architecture.embeddings.outputs


def p_tuning(block: PTuning, architecture: Architecture) -> int:
    """An embedding for each token, and an LSTM or three linear layers over them: Liu et al. 2021, section 3; peft/tuners/p_tuning/model.py."""
    _check_width(architecture)
    width = architecture.hidden
    inner = block.encoder_hidden_size or width
    tokens = block.num_virtual_tokens * width
    if block.encoder_reparameterization_type == "MLP":
        return tokens + (width + 1) * inner + (inner + 1) * inner + (inner + 1) * width
    # an LSTM of two directions: four gates with two biases each; its first layer reads the embeddings, the others both directions
    first = 2 * 4 * inner * (width + inner + 2)
    others = (block.encoder_num_layers - 1) * 2 * 4 * inner * (3 * inner + 2)
    head = (2 * inner + 1) * 2 * inner + (2 * inner + 1) * width
    return tokens + first + others + head


def bottleneck_width(block: Bottleneck, architecture: Architecture) -> int:
    """Width of the adapter layers."""
    return max(1, math.floor(architecture.hidden / block.reduction_factor))


def bottleneck(block: Bottleneck, architecture: Architecture) -> int:
    """Two matrices with biases, once or twice in each layer: Houlsby et al. 2019, section 2.1; Pfeiffer et al. 2020, section 3."""
    width, hidden = bottleneck_width(block, architecture), architecture.hidden
    each = hidden * width + width + width * hidden + hidden
    return architecture.layers * each * (2 if block.placement == "houlsby" else 1)


def _check_width(architecture: Architecture) -> None:
    """PEFT makes learned tokens as wide as the hidden states, and puts them before the embeddings."""
    if architecture.embeddings.outputs != architecture.hidden:
        raise NotCountedError(
            f"PEFT's learned tokens do not fit the embeddings of this {architecture.model_type}, which are narrower than its layers: use lora"
        )


def _of_model(block: Block, architecture: Architecture) -> int:
    match block:
        case PrefixTuning():
            return prefix_tuning(block, architecture)
        case PromptTuning():
            return prompt_tuning(block, architecture)
        case PTuning():
            return p_tuning(block, architecture)
        case Bottleneck():
            return bottleneck(block, architecture)
        case Peft():
            raise NotCountedError(f"the estimate has no closed form for PEFT's {block.type}")
    raise NotCountedError(f"the estimate has no closed form for {type(block).__name__}")


def _linear(module: Module, method: str) -> Module:
    if module.kind == "conv1d":
        raise NotCountedError(f"PEFT's {method} does not adapt the Conv1D layers of GPT-2, such as {module.name}")
    return module


def _saved(architecture: Architecture, block: Targeted) -> int:
    """A trained copy of each module that modulesToSave names, of tied ones too: peft/utils/other.py, ``ModulesToSaveWrapper``."""
    return sum(
        module.parameters + (module.inputs * module.outputs if module.tied else 0)
        for module in architecture.modules
        if is_saved(module, block.modules_to_save)
    )


def _biases(architecture: Architecture, block: Targeted, adapted: tuple[Module, ...]) -> int:
    """The base's own biases that are trained too: peft/tuners/tuners_utils.py, ``_mark_only_adapters_as_trainable``."""
    which = block.bias if isinstance(block, LoraFields) else "none"
    chosen = {"none": (), "all": architecture.modules, "lora_only": adapted}[which]
    return sum(module.outputs for module in chosen if module.bias)
