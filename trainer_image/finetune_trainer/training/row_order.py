"""Order the training rows: the longest ones come in the first step, so that a lack of memory shows at once."""

from collections.abc import Iterator

import datasets  # type: ignore[import-untyped]
import numpy
import pyarrow.compute  # type: ignore[import-untyped]
import torch
from torch.utils.data import Sampler


class LongestFirst(Sampler[int]):
    """Shuffle the rows for each epoch as transformers does; the first step of the first epoch has the longest rows.

    Each row is still taken once in an epoch. The order depends on the number of rows in a step alone, and not on how
    the out-of-memory ladder divides the step into batches.
    """

    def __init__(self, lengths: list[int], first: int, seed: int) -> None:
        """Order rows of these lengths; ``first`` is the number of rows in a step."""
        self._lengths, self._first, self._seed = lengths, first, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0. The data loader calls this."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of the rows in the order of this epoch."""
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order: list[int] = torch.randperm(len(self), generator=generator).tolist()
        if self._epoch == 0:
            longest = sorted(order, key=lambda row: -self._lengths[row])[: self._first]
            chosen = set(longest)
            order = [*longest, *(row for row in order if row not in chosen)]
        return iter(order)


def measure_lengths(rows: datasets.Dataset) -> list[int]:
    """Return the number of tokens of each row; of two answers the longer one counts."""
    measured: list[int] = []
    for batch in rows.with_format("arrow").iter(batch_size=1024):
        total = numpy.zeros(len(batch), dtype=numpy.int64)
        answers = numpy.zeros(len(batch), dtype=numpy.int64)
        for name in batch.column_names:
            if name.endswith("_ids"):
                lengths = pyarrow.compute.list_value_length(batch[name]).to_numpy()
                if name in ("input_ids", "prompt_ids"):
                    total += lengths
                else:
                    answers = numpy.maximum(answers, lengths)
        measured += (total + answers).tolist()
    return measured
