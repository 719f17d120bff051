"""Choose the batch and its accumulation where a job leaves both unset: what fills a GPU, and learns well.

How many sequences a step has depends on the job and its data alone, so that each attempt takes the same steps on
whatever GPU. How a step is split into micro-steps depends on the GPU's memory, and changes no result.
"""

from dataclasses import dataclass

from finetune_api import combinations
from finetune_api.estimate.checkpointing import TIGHT, with_checkpointing
from finetune_api.estimate.memory import GIB, job_memory
from finetune_api.estimate.modules import Architecture
from finetune_api.estimate.objective import PASSES
from finetune_api.finetunejob import FineTuneJobSpec, Training
from finetune_api.reductions import smallest_batch

FILLING_TOKENS = 8192
"""Tokens of a micro-step that fill a GPU: more make it hardly faster."""
FEW_TOKENS = 2048
"""A micro-step of fewer tokens leaves more of a GPU idle than recomputed activations cost, which is about a third."""
SEQUENCES, MOST_SEQUENCES = 16, 32
"""Sequences of a step, and as many as it may have to fill all GPUs: a larger step makes LoRA learn less."""
LEAST_STEPS = 100
"""Steps that a training should have; little data gives fewer sequences to a step instead."""


@dataclass(frozen=True)
class MicroStep:
    """Sequences of a micro-step on one GPU; ``bytes`` is the estimate of the job's memory with it."""

    sequences: int
    bytes: int
    fits: bool


def choose_sequences(spec: FineTuneJobSpec, rows: int) -> int:
    """Choose how many sequences an optimizer step has on all GPUs together.

    Args:
        spec: The job.
        rows: Rows of an epoch; packed ones, if the job packs them.
    """
    training, processes = spec.training, spec.resources.processes
    filling = processes * -(-FILLING_TOKENS // _count_tokens(spec, 1))
    trained_rows = int(rows * (training.epochs or 1))
    most = min(max(SEQUENCES, filling), MOST_SEQUENCES, trained_rows // (training.max_steps or LEAST_STEPS))
    per_gpu = max(most // processes, smallest_batch(spec))
    return processes << (per_gpu.bit_length() - 1)  # a power of two on each GPU: it has the most divisors


def choose_micro_step(spec: FineTuneJobSpec, architecture: Architecture, gpu_bytes: int, per_gpu: int) -> MicroStep:
    """Choose how many sequences of a step a GPU takes at once.

    Args:
        spec: The job.
        architecture: The base model.
        gpu_bytes: Memory of the GPU, in bytes.
        per_gpu: Sequences of a step on one GPU.

    Raises:
        TargetError: The method names a module that the model does not have.
        NotCountedError: There is no closed form for the method on this model.
    """
    sizes = [size for size in range(smallest_batch(spec), per_gpu + 1) if per_gpu % size == 0]
    enough = next((size for size in sizes if _count_tokens(spec, size) >= FILLING_TOKENS), sizes[-1])
    sizes = [size for size in sizes if size <= enough]
    is_automatic = spec.training.gradient_checkpointing == "auto"
    kept = _find_largest(
        with_checkpointing(spec, enabled=False) if is_automatic else spec, architecture, gpu_bytes, sizes
    )
    recomputed_spec = with_checkpointing(spec, enabled=True)
    if not is_automatic or not combinations.allows(recomputed_spec):
        return kept
    if kept.fits and (kept.sequences == enough or _count_tokens(spec, kept.sequences) >= FEW_TOKENS):
        return kept
    recomputed = _find_largest(recomputed_spec, architecture, gpu_bytes, sizes)
    return recomputed if recomputed.sequences > kept.sequences or not kept.fits else kept


def split_step(training: Training, micro_step: int, per_gpu: int) -> Training:
    """Return the training with a step of ``per_gpu`` sequences on a GPU, taken ``micro_step`` at once."""
    return training.model_copy(
        update={"per_device_batch_size": micro_step, "gradient_accumulation_steps": per_gpu // micro_step}
    )


def explain_micro_step(spec: FineTuneJobSpec, chosen: MicroStep, gpu_bytes: int) -> str:
    """Return a sentence about why a micro-step has these sequences."""
    tokens = _count_tokens(spec, chosen.sequences)
    needed = f"by the estimate {chosen.bytes / GIB:.1f} of the GPU's {gpu_bytes / GIB:.1f} GiB"
    if not chosen.fits:
        return f"the smallest micro-step, {tokens} tokens, needs {needed}: it may run out of memory"
    return f"a micro-step of at most {tokens} tokens needs {needed}"


def _count_tokens(spec: FineTuneJobSpec, sequences: int) -> int:
    """Count the tokens of a micro-step with full rows."""
    return sequences * PASSES[spec.objective].sequences * spec.training.max_length


def _find_largest(spec: FineTuneJobSpec, architecture: Architecture, gpu_bytes: int, sizes: list[int]) -> MicroStep:
    """Return the largest micro-step that fits, or else the smallest one."""
    for size in reversed(sizes):
        job = spec.model_copy(update={"training": split_step(spec.training, size, size)})
        needed = job_memory(architecture, job).total
        if needed <= TIGHT * gpu_bytes or size == sizes[0]:
            return MicroStep(size, needed, fits=needed <= TIGHT * gpu_bytes)
    raise ValueError("a GPU has at least one sequence")
