"""The GPUs that people train on: how much memory a process sees, and how fast they multiply."""

from dataclasses import dataclass

from finetune_api.estimate.memory import GIB


@dataclass(frozen=True)
class Gpu:
    """``bytes`` is what torch can use, which is less than the product's name says; ``flops`` are dense bf16 products with fp32 sums per second."""

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
"""Memory: the total capacity in torch's out-of-memory errors that users of these GPUs published, the lowest. Speed: NVIDIA's data sheets, without sparsity; of
H100, H200 and B200 the SXM ones."""


def gpu_named(name: str) -> Gpu:
    """The GPU of a name, in any case, with or without spaces. Raises ValueError, which lists the names."""
    wanted = _plain(name)
    for gpu in GPUS:
        if wanted == _plain(gpu.name):
            return gpu
    raise ValueError(f"there is no GPU named {name!r} in the table; it has: {', '.join(gpu.name for gpu in GPUS)}")


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
