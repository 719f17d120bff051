"""The GPUs that people train on: usable memory and speed of each."""

from dataclasses import dataclass

from finetune_api.estimate.memory import GIB


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: Name of the product.
        bytes: Memory that torch can use, which is less than the product's name says.
        flops: Dense bf16 operations per second, summed in fp32.
    """

    name: str
    bytes: int
    flops: float


def _gpu(name: str, gib: float, teraflops: float) -> Gpu:
    return Gpu(name, int(gib * GIB), teraflops * 1e12)


GPUS = (
    _gpu("A10", 21.9, 125),
    _gpu("L4", 21.9, 121),
    _gpu("RTX 4090", 23.5, 165.2),
    _gpu("RTX 5090", 31.3, 209.5),
    _gpu("A100 40GB", 39.4, 312),
    _gpu("L40S", 44.3, 362),
    _gpu("RTX A6000", 47.4, 154.8),
    _gpu("A100 80GB", 79.1, 312),
    _gpu("H100", 79.1, 989),
    _gpu("H200", 139.7, 989),
    _gpu("B200", 178.3, 2250),
)
"""Usable memory (GiB) and speed (Tflop/s).

The memory is the lowest total capacity in out-of-memory errors of torch that users published. The speed is that of
NVIDIA's data sheets, without sparsity; for H100, H200 and B200 that of the SXM versions.
"""


def gpu_named(name: str) -> Gpu:
    """Return the GPU of a name, in upper or lower case, with or without spaces.

    Raises:
        ValueError: The table has no such GPU; the message lists the names.
    """
    for gpu in GPUS:
        if _letters(name) == _letters(gpu.name):
            return gpu
    raise ValueError(f"there is no GPU named {name!r} in the table; it has: {', '.join(gpu.name for gpu in GPUS)}")


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
