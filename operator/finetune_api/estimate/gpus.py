"""List the GPUs that people train on, with the usable memory and the speed of each."""

import re
from dataclasses import dataclass

from finetune_api.estimate.memory import GIB


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: Name of the product.
        bytes: Memory that torch can use, which is less than the product's name says.
        flops: Dense operations per second in bf16, or in fp16 where the GPU has no bf16, summed in fp32.
    """

    name: str
    bytes: int
    flops: float


def _gpu(name: str, gib: float, teraflops: float) -> Gpu:
    return Gpu(name, int(gib * GIB), teraflops * 1e12)


GPUS = (
    _gpu("T4", 14.6, 65),
    _gpu("V100 16GB", 15.8, 125),
    _gpu("A10", 21.9, 125),
    _gpu("A10G", 21.9, 70),
    _gpu("L4", 21.9, 121),
    _gpu("RTX 3090", 23.5, 71),
    _gpu("RTX 4090", 23.5, 165.2),
    _gpu("RTX 5090", 31.3, 209.5),
    _gpu("V100 32GB", 31.7, 125),
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
NOISE = re.compile(r"nvidia|tesla|geforce|quadro|sxm\d?|pcie|nvl|hbm\d?e?")
"""Words that people and drivers add to the product's name."""
SIZE = re.compile(r"(?<![a-z0-9])(\d+)\s*g(?:i?b|i)?\b")


def gpu_named(name: str) -> Gpu:
    """Return the GPU of a name as people and drivers write it.

    Examples are a100, A100-SXM4-80GB, Tesla T4 and NVIDIA H100 80GB HBM3. If the name has no size and the product is
    sold with several, it is the smallest.

    Raises:
        ValueError: The table has no such GPU; the message lists the names.
    """
    product, size = _split(name)
    matching = [gpu for gpu in GPUS if _split(gpu.name)[0] == product and _has_size(gpu, size)]
    if not matching:
        raise ValueError(f"there is no GPU named {name!r} in the table; it has: {', '.join(gpu.name for gpu in GPUS)}")
    return min(matching, key=lambda gpu: gpu.bytes)


def _split(name: str) -> tuple[str, int | None]:
    """Return the letters and digits of the product's name, and the size in GB if the name has one."""
    text = re.sub(r"[-_/]", " ", name.lower())
    size = SIZE.search(text)
    text = NOISE.sub(" ", SIZE.sub(" ", text))
    return "".join(letter for letter in text if letter.isalnum()), int(size[1]) if size else None


def _has_size(gpu: Gpu, size: int | None) -> bool:
    """Return whether a GPU may be sold under a size in GB; torch can use a little less of it."""
    return size is None or 0.85 * size <= gpu.bytes / GIB <= size
