"""Compute the GPU memory of a training, part by part, from shapes alone."""

from dataclasses import dataclass

from finetune_api.estimate.activations import layer_activations, mask_bytes, norm_bytes, residual_bytes
from finetune_api.estimate.modules import Architecture, Module
from finetune_api.estimate.objective import PASSES, method_of, model_of
from finetune_api.estimate.parameters import count
from finetune_api.estimate.step import Step, cast_bytes
from finetune_api.estimate.targets import adapted_modules
from finetune_api.finetunejob import FineTuneJobSpec, Objective, Training
from finetune_api.methods import Block, Bottleneck, Full, Method, Quantization, Targeted
from finetune_api.targets import is_trained_whole

GIB = 2**30
CONTEXT_BYTES = 1.5 * GIB
"""CUDA context, cuBLAS workspaces and memory that the allocator cannot use.

The figure of the project's reference, which was not measured on a GPU yet.
"""
ADAM_BYTES = 8
"""Two moments in fp32: Kingma and Ba 2015, algorithm 1."""
ADAM_8BIT_BYTES = 2 * (1 + 4 / 256)
"""Two moments of one byte, and an fp32 maximum for each block of 256.

Source: Dettmers et al. 2021, section 2; bitsandbytes/optim/optimizer.py.
"""
FOREACH_BYTES = 4
"""torch.optim.AdamW without ``fused`` holds the square roots of all second moments at once.

Source: torch/optim/adamw.py, ``_multi_tensor_adamw``.
"""
NF4_BLOCK, DOUBLE_BLOCK = 64, 256
"""Weights that share a maximum, and maxima that share one when they are quantised too.

Source: Dettmers et al. 2023 (QLoRA), sections 2 and 3.
"""
TOKEN_TILE, VOCABULARY_TILE = 4096, 32768
"""Tokens and words of the tiles in which TRL computes the loss.

Source: trl/kernels/chunked_logprob.py, trl/trainer/utils.py.
"""
NCCL_BYTES = GIB // 2
"""Channels and buffers of NCCL's one communicator.

It has up to 32 channels with 4 MiB for each peer and protocol (NCCL_BUFFSIZE); not measured on GPUs yet.
"""
ORPO_LOGIT_BYTES = 17
"""Bytes of each logit of orpo while its loss runs backward: measured on a CPU.

In fp32 they are the logits, their gradients of the two losses, and the better answers' log-probabilities.
"""
SERVED_BYTES = 2
"""Bytes of a weight of the fresh base in bf16.

The trainer takes fp32 only where that is less than a third of the GPU (finetune_trainer/models).
"""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU by part, at the highest moment of a training step and during the verification."""

    weights: int
    """The base."""
    adapter: int
    """The trained parameters in fp32, in addition to the base, and the method's own state."""
    reference: int
    """The frozen copy with which dpo and kto compare: of the adapter or, without one, of the model."""
    gradients: int
    """With several GPUs they lie in the buckets of DDP, which need no memory of their own."""
    optimizer: int
    activations: int
    """Tensors for the backward pass, and the scratch of the layer that runs."""
    loss: int
    communication: int
    """NCCL, with several GPUs."""
    overhead: int
    verification: int
    """Everything after the training, when a fresh base in bf16 is evaluated with and without the adapter."""

    @property
    def total(self) -> int:
        """Return the sum of all parts of the training step, which the GPU must have.

        The verification runs on the CPU where the GPU has too little memory for it.
        """
        return sum(getattr(self, part) for part in PARTS)


PARTS = (
    "weights",
    "adapter",
    "reference",
    "gradients",
    "optimizer",
    "activations",
    "loss",
    "communication",
    "overhead",
)


def job_memory(architecture: Architecture, spec: FineTuneJobSpec) -> Memory:
    """Compute the parts of a job for one GPU. gradientCheckpointing auto counts as off.

    Raises:
        TargetError: The method names a module that the model does not have.
        NotCountedError: There is no closed form for the method on this model.
    """
    return memory(
        architecture,
        spec.method,
        spec.training,
        objective=spec.objective,
        evaluates=spec.evaluation.recurs,
        processes=spec.resources.processes,
    )


def memory(
    architecture: Architecture,
    method: Method,
    training: Training,
    *,
    objective: Objective = "sft",
    evaluates: bool = False,
    processes: int = 1,
) -> Memory:
    """Compute the parts for one GPU. gradientCheckpointing auto counts as off.

    Args:
        architecture: The base model.
        method: The method.
        training: The training section of the spec.
        objective: What it trains for.
        evaluates: Whether held-out rows are evaluated between the steps.
        processes: GPUs that train together.

    Raises:
        TargetError: The method names a module that the model does not have.
        NotCountedError: There is no closed form for the method on this model.
    """
    architecture, method = model_of(objective, architecture), method_of(objective, method)
    step, block = step_of(training, objective), method.config
    trainable = count(architecture, method).trainable
    weights, scratch = _weights(architecture, method, step)
    sharers = processes if training.sharding == "full" else 1
    if sharers > 1:
        weights = _sharded_weights(architecture, step, weights, sharers)
    activations, loss, temporary = _highest_moment(architecture, method, training, objective, evaluates, trainable)
    verification = _verification(architecture, method, trainable, sharers)
    if PASSES[objective].head != "score":
        verification += evaluation_bytes(architecture, training.max_length)
    return Memory(
        weights=round(weights),
        adapter=0
        if block.trains_all_weights
        else round(4 * trainable + _method_state(architecture, method, trainable)),
        reference=round(_reference(architecture, block, step, trainable)) if PASSES[objective].reference else 0,
        gradients=4 * trainable,
        optimizer=round(trainable * optimizer_bytes(training.optimizer)) + temporary,
        activations=round(activations + scratch),
        loss=round(loss),
        communication=NCCL_BYTES if processes > 1 else 0,
        overhead=round(CONTEXT_BYTES),
        verification=round(CONTEXT_BYTES + verification),
    )


def full_memory(architecture: Architecture, spec: FineTuneJobSpec) -> Memory:
    """Compute the parts of full fine-tuning with a job's settings, for ``evaluation.compareWithFull``."""
    return memory(architecture, Method(full=Full()), spec.training, objective=spec.objective)


def step_of(training: Training, objective: Objective = "sft") -> Step:
    """Return the shape of a micro-step on a GPU.

    Precision auto counts as bf16, and every sequence has maxLength tokens.
    """
    batch = training.batch_size * PASSES[objective].sequences
    return Step(
        batch,
        training.max_length,
        mixed=training.precision != "fp32",
        masked=batch > 1 or training.packs,
        packed=training.packs,
    )


def optimizer_bytes(name: str) -> float:
    """Return the bytes of the optimizer's state for each trained parameter."""
    return ADAM_8BIT_BYTES if "8bit" in name else ADAM_BYTES


def quantised_bytes(module: Module, quantization: Quantization) -> float:
    """Return the bytes of a weight in bitsandbytes.

    int8 has a scale for each output, 4 bits have a maximum for each block.
    """
    size = module.inputs * module.outputs
    if quantization.type == "int8":
        return size + 4 * module.outputs
    maxima = size / NF4_BLOCK
    return size / 2 + (maxima * (1 + 4 / DOUBLE_BLOCK) if quantization.double_quantization else 4 * maxima)


def evaluation_bytes(architecture: Architecture, length: int) -> int:
    """Return the bytes of one row's logits: in 16 bits, and in fp32 before and after their softmax."""
    return 10 * length * architecture.vocabulary


def outside_bytes(architecture: Architecture, method: Method, step: Step) -> float:
    """Return the bytes kept outside the layers.

    They are the last norm's tensors, the hidden states after it, the mask, and the tensors that make learned tokens.
    """
    block = method.config
    tokens = step.batch * (step.length + block.prepended_tokens)
    hidden = residual_bytes(block, step) * architecture.hidden
    norm = norm_bytes(architecture.hidden, architecture.modules[-2].kind, trained=block.trains_all_weights)
    kept_bytes = tokens * (norm + hidden)
    if architecture.attention.quadratic:
        kept_bytes += tokens * mask_bytes(step)
    elif step.masked:
        kept_bytes += (
            tokens * mask_bytes(step) // step.element
        )  # one byte for each boolean; each layer keeps its own mask of numbers
    if block.is_prompt_learning:
        kept_bytes += tokens * hidden + cast_bytes(count(architecture, method).trainable, step)
    return kept_bytes


def _weights(architecture: Architecture, method: Method, step: Step) -> tuple[float, float]:
    """Return the bytes of the base, and of the largest layer that is dequantised while it multiplies."""
    element = 4 if method.config.trains_all_weights else step.element
    quantization = method.quantization
    total, scratch = 0.0, 0.0
    for module in architecture.modules:
        if quantization and module.is_linear and module is not architecture.head:
            total += quantised_bytes(module, quantization) + element * (module.outputs if module.bias else 0)
            scratch = max(scratch, step.element * module.weight)
        else:
            total += element * module.parameters
    return total, scratch


def _sharded_weights(architecture: Architecture, step: Step, weights: float, sharers: int) -> float:
    """Return the bytes of a sharded base on one GPU while a step runs.

    They are its part of the base, everything outside the layers, and two gathered layers, one of them prefetched.
    """
    layer = step.element * sum(module.parameters for module in architecture.layer(0))
    return weights / sharers + (weights - architecture.layers * layer) + 2 * layer


def _reference(architecture: Architecture, block: Block, step: Step, trainable: int) -> float:
    """Return the bytes of the reference: the adapter in fp32, or the base if there is no PEFT adapter."""
    is_copy_of_base = block.trains_all_weights or isinstance(block, Bottleneck)
    return step.element * architecture.parameters if is_copy_of_base else 4 * trainable


def _method_state(architecture: Architecture, method: Method, trainable: int) -> float:
    """Return the bytes of fp32 state that a method keeps in addition to the trained parameters."""
    block = method.config
    return block.state_bytes(trainable, adapted_modules(architecture, method)) if isinstance(block, Targeted) else 0.0


def _highest_moment(
    architecture: Architecture,
    method: Method,
    training: Training,
    objective: Objective,
    evaluates: bool,
    trainable: int,
) -> tuple[float, float, int]:
    """Return activations, loss and optimizer scratch at the moment that needs most.

    The moments are the loss, a layer's backward pass, the optimizer's step and an evaluation.
    """
    step, block = step_of(training, objective), method.config
    layer = layer_activations(architecture, method, step)
    tokens = step.batch * (step.length + block.prepended_tokens)
    recomputes = training.gradient_checkpointing == "always"
    kept_bytes = architecture.layers * (layer.entry if recomputes else layer.saved)
    kept_bytes += outside_bytes(architecture, method, step)
    cached = cast_bytes(trainable, step) if block.trains_all_weights and recomputes else 0
    loss = _loss(architecture, block, tokens, step, objective)
    recomputed = layer.saved if recomputes else 0.0
    scratch = FOREACH_BYTES * trainable if training.optimizer == "adamw_torch" else 0
    evaluates = evaluates and PASSES[objective].head != "score"
    moments = [
        (kept_bytes + cached, loss, 0),
        (kept_bytes + recomputed + layer.transient, 0.0, 0),
        (0.0, 0.0, scratch),
        (0.0, evaluation_bytes(architecture, training.max_length) if evaluates else 0.0, 0),
    ]
    return max(moments, key=sum)


def _verification(architecture: Architecture, method: Method, trainable: int, sharers: int) -> float:
    """Return the bytes of the base, and of the adapter or the trained model.

    A base that was sharded is spread over as many GPUs by its layers.
    """
    base = SERVED_BYTES * architecture.parameters / sharers
    trained = base if method.config.trains_all_weights else 4 * trainable
    return base + trained


def _loss(architecture: Architecture, block: Block, tokens: int, step: Step, objective: Objective) -> float:
    """Return the bytes of TRL's loss.

    They are a tile of logits (of orpo all logits and what is made of them), the hidden states and their gradient in
    fp32, and the gradient of a trained head.
    """
    hidden, element, head = architecture.hidden, step.element, architecture.head
    logits = {
        "tiles": element * min(tokens, TOKEN_TILE) * VOCABULARY_TILE,
        "logits": tokens * ORPO_LOGIT_BYTES * architecture.vocabulary,
        "score": 0,
    }[PASSES[objective].head]
    is_saved_module = isinstance(block, Targeted) and is_trained_whole(head.name, block.modules_to_save)
    gradient = (4 + element) * head.inputs * head.outputs if block.trains_all_weights or is_saved_module else 0
    return logits + tokens * hidden * (4 + 2 * element) + gradient
