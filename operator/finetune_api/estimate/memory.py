"""The GPU memory of a training, part by part, from shapes alone."""

from dataclasses import dataclass

from finetune_api.estimate.activations import (
    Step,
    casts,
    layer_activations,
    mask_bytes,
    norm_bytes,
    residual_bytes,
    virtual_tokens,
)
from finetune_api.estimate.modules import Architecture, Module
from finetune_api.estimate.parameters import count
from finetune_api.estimate.targets import is_saved, targets
from finetune_api.finetunejob import Training
from finetune_api.methods import Adalora, Full, Method, Quantization, Targeted, Vera, VirtualTokens

GIB = 2**30
CONTEXT_BYTES = 1.5 * GIB
"""CUDA context, cuBLAS workspaces and what the allocator cannot use: the figure of the project's reference, which was not measured on a GPU yet."""
ADAM_BYTES = 8
"""Two moments in fp32: Kingma and Ba 2015, algorithm 1."""
ADAM_8BIT_BYTES = 2 * (1 + 4 / 256)
"""Two moments of one byte, and an fp32 maximum for each block of 256: Dettmers et al. 2021, section 2; bitsandbytes/optim/optimizer.py."""
FOREACH_BYTES = 4
"""torch.optim.AdamW without ``fused`` holds the square roots of all second moments at once (torch/optim/adamw.py, ``_multi_tensor_adamw``)."""
NF4_BLOCK, DOUBLE_BLOCK = 64, 256
"""Weights that share a maximum, and maxima that share one when they are quantised too: Dettmers et al. 2023 (QLoRA), sections 2 and 3."""
ALLOCATOR_BYTES = 12
"""AdaLoRA's rank allocator holds three fp32 numbers for each trained one (peft/tuners/adalora/layer.py, ``RankAllocator``)."""
TOKEN_TILE, VOCABULARY_TILE = 4096, 32768
"""TRL computes the loss in tiles of so many tokens and words (trl/kernels/chunked_logprob.py, trl/trainer/utils.py)."""


SERVED_BYTES = 2
"""A weight of the fresh base in bf16; the trainer takes fp32 only where that is less than a third of the GPU (finetune_trainer/model.py)."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the highest moment of a training step, by part; and when the finished adapter is verified."""

    weights: int
    """The base."""
    adapter: int
    """What is trained beside the base, in fp32, and what the method keeps with it."""
    gradients: int
    optimizer: int
    activations: int
    """What the backward pass needs, and the scratch of the layer that runs."""
    loss: int
    overhead: int
    verification: int
    """All that is there after the training, when the base is loaded afresh, in bf16, and evaluated with and without the adapter."""

    @property
    def total(self) -> int:
        """All parts of the training step: what the GPU must have. The verification runs on the CPU where it needs more than there is."""
        return sum(getattr(self, part) for part in PARTS)


PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "loss", "overhead")


def memory(
    architecture: Architecture, method: Method, training: Training, *, evaluates: bool = False, processes: int = 1
) -> Memory:
    """The parts for one GPU, of ``processes`` that train together; gradientCheckpointing auto is off. Raises TargetError and NotCountedError.

    ``evaluates``: on held-out rows between the steps.
    """
    step = step_of(training)
    trainable = count(architecture, method).trainable
    full = isinstance(method.config, Full)
    weights, scratch = _weights(architecture, method, step)
    sharers = processes if training.sharding == "full" else 1
    if sharers > 1:
        weights = _sharded(architecture, step, weights, sharers)
    activations, loss, temporary = _highest_moment(architecture, method, training, evaluates, trainable)
    return Memory(
        weights=round(weights),
        adapter=0 if full else round(4 * trainable + _beside(architecture, method, trainable)),
        gradients=4 * trainable,
        optimizer=round(trainable * optimizer_bytes(training.optimizer)) + temporary,
        activations=round(activations + scratch),
        loss=round(loss),
        overhead=round(CONTEXT_BYTES),
        verification=round(
            CONTEXT_BYTES + _verification(architecture, method, training.max_length, trainable, sharers)
        ),
    )


def whole(architecture: Architecture, training: Training) -> Memory:
    """The parts of full fine-tuning with the settings of an adapter's training, which ``evaluation.compareWithFull`` compares it with."""
    return memory(architecture, Method(full=Full()), training)


def step_of(training: Training) -> Step:
    """The shape of a micro-step on a GPU: precision auto is bf16 there, and every row is as long as it may be."""
    batch = training.per_device_batch_size
    return Step(
        batch,
        training.max_length,
        mixed=training.precision != "fp32",
        masked=batch > 1 or training.packing,
        packed=training.packing,
    )


def optimizer_bytes(name: str) -> float:
    """Bytes of the optimizer's state for each trained parameter."""
    return ADAM_8BIT_BYTES if "8bit" in name else ADAM_BYTES


def quantised_bytes(module: Module, quantization: Quantization) -> float:
    """A weight as bitsandbytes holds it: int8 with a scale for each output, or 4 bits with a maximum for each block."""
    size = module.inputs * module.outputs
    if quantization.type == "int8":
        return size + 4 * module.outputs
    maxima = size / NF4_BLOCK
    return size / 2 + (maxima * (1 + 4 / DOUBLE_BLOCK) if quantization.double_quantization else 4 * maxima)


def _weights(architecture: Architecture, method: Method, step: Step) -> tuple[float, float]:
    """Bytes of the base; and of the largest layer that is dequantised while it multiplies."""
    element = 4 if isinstance(method.config, Full) else step.element
    quantization = method.quantization
    total, scratch = 0.0, 0.0
    for module in architecture.modules:
        if quantization and module.is_linear and module is not architecture.head:
            total += quantised_bytes(module, quantization) + element * (module.outputs if module.bias else 0)
            scratch = max(scratch, step.element * module.weight)
        else:
            total += element * module.parameters
    return total, scratch


def _sharded(architecture: Architecture, step: Step, weights: float, sharers: int) -> float:
    """A part of the base, and whole: what is in no layer, while a step runs, and two layers, of which one is fetched ahead (finetune_trainer/sharding.py)."""
    layer = step.element * sum(module.parameters for module in architecture.layer(0))
    return weights / sharers + (weights - architecture.layers * layer) + 2 * layer


def _beside(architecture: Architecture, method: Method, trainable: int) -> float:
    """What a method keeps in fp32 beside the trained parameters."""
    block = method.config
    if isinstance(block, Adalora):
        return ALLOCATOR_BYTES * trainable
    if isinstance(block, Vera):
        adapted = targets(architecture, method)
        return 4 * block.rank * (max(m.inputs for m in adapted) + max(m.outputs for m in adapted))
    return 0.0


def _highest_moment(
    architecture: Architecture, method: Method, training: Training, evaluates: bool, trainable: int
) -> tuple[float, float, int]:
    """Activations, loss and optimizer scratch at whichever moment needs most: the loss, a layer's backward pass, the optimizer's step, or an evaluation."""
    step = step_of(training)
    layer = layer_activations(architecture, method, step)
    block = method.config
    tokens = step.batch * (step.length + virtual_tokens(block))
    full = isinstance(block, Full)
    recomputes = training.gradient_checkpointing == "always"
    kept = architecture.layers * (layer.entry if recomputes else layer.saved)
    kept += outside_bytes(architecture, method, step)
    cached = casts(trainable, step) if full and recomputes else 0
    loss = _loss(architecture, block, tokens, step)
    recomputed = layer.saved if recomputes else 0.0
    scratch = FOREACH_BYTES * trainable if training.optimizer == "adamw_torch" else 0
    moments = [
        (kept + cached, loss, 0),
        (kept + recomputed + layer.transient, 0.0, 0),
        (0.0, 0.0, scratch),
        (0.0, evaluation_bytes(architecture, training.max_length) if evaluates else 0.0, 0),
    ]
    return max(moments, key=sum)


def evaluation_bytes(architecture: Architecture, length: int) -> int:
    """All logits of one row in fp32, before and after their softmax (finetune_trainer/evaluation.py, ``mean_loss``)."""
    return 8 * length * architecture.vocabulary


def _verification(architecture: Architecture, method: Method, length: int, trainable: int, sharers: int) -> float:
    """The base, beside it the adapter or the model that was trained whole, and the logits of one row (finetune_trainer/verification.py, ``verify``).

    A base that was sharded is spread over as many GPUs by its layers.
    """
    base = SERVED_BYTES * architecture.parameters / sharers
    trained = base if isinstance(method.config, Full) else 4 * trainable
    return base + trained + evaluation_bytes(architecture, length)


def outside_bytes(architecture: Architecture, method: Method, step: Step) -> float:
    """What is kept beside the layers: the last norm's tensors, the hidden states that it gives, the mask, and of learned tokens what makes them."""
    block = method.config
    tokens = step.batch * (step.length + virtual_tokens(block))
    hidden = residual_bytes(block, step) * architecture.hidden
    kept = tokens * (norm_bytes(architecture.hidden, architecture.modules[-2].kind, isinstance(block, Full)) + hidden)
    if architecture.attention.quadratic:
        kept += tokens * mask_bytes(step)
    elif step.masked:
        kept += tokens * mask_bytes(step) // step.element  # of truth values: each layer makes numbers of them
    if isinstance(block, VirtualTokens):
        kept += tokens * hidden + casts(count(architecture, method).trainable, step)
    return kept


def _loss(architecture: Architecture, block: object, tokens: int, step: Step) -> float:
    """TRL's chunked loss: a tile of logits, the hidden states and their gradient in fp32, and that of a head that is trained."""
    hidden, element = architecture.hidden, step.element
    tile = element * min(tokens, TOKEN_TILE) * min(architecture.vocabulary, VOCABULARY_TILE)
    head = architecture.head
    trained = isinstance(block, Full) or (isinstance(block, Targeted) and is_saved(head, block.modules_to_save))
    gradient = (4 + element) * head.inputs * head.outputs if trained else 0
    return tile + tokens * hidden * (4 + 2 * element) + gradient
