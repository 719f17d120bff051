"""Compute a checksum of a tensor on the device where it is, so that no weights are copied to main memory."""

import torch

CHUNK = 2**24
"""Number of 4-byte words that are processed at once: their temporary copies need about half a gigabyte."""
FACTORS = (-0x61C8864680B583EB, -0x3D4D51C2D82B14B1)
"""Odd numbers whose multiples are spread over all 64 bits: those of splitmix64 (Steele et al. 2014) and xxHash64."""


def compute_checksums(tensor: torch.Tensor) -> torch.Tensor:
    """Return two checksums of a tensor's bytes: shape (2,), int64, on its device.

    A checksum is the sum of the 4-byte words, each multiplied by an odd number that depends on its position, modulo
    2⁶⁴: the order of the additions does not matter, and a change of one word always changes it. It detects mistakes,
    not attacks.
    """
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if missing := -data.numel() % 4:
        data = torch.nn.functional.pad(data, (0, missing))
    elif data.storage_offset() % 4:
        data = data.clone()
    words = data.view(torch.int32)
    sums = torch.zeros(2, dtype=torch.int64, device=words.device)
    for begin in range(0, len(words), CHUNK):
        chunk = words[begin : begin + CHUNK]
        positions = torch.arange(begin + 1, begin + 1 + len(chunk), device=words.device)
        for index, factor in enumerate(FACTORS):
            multipliers = positions * factor
            multipliers.bitwise_xor_(multipliers >> 29).bitwise_or_(1)
            sums[index] += multipliers.mul_(chunk).sum()
    return sums
