"""Find how much memory a pod needs to merge an adapter into its base. Pure."""

from finetune_api.finetunejob import Estimate, FineTuneJobSpec

SHARD_BYTES, LIBRARIES_BYTES = 2 * 10**9, 2**30
"""Memory besides the weights: one file of the merged model while it is written, and the process itself."""
SLACK = 1.1
"""Factor of the weights for what loading and merging add: the adapter, and one layer at a time."""


def find_merge_bytes(spec: FineTuneJobSpec, estimate: Estimate | None) -> int | None:
    """Return the memory in bytes; None if the preflight did not estimate the model's size.

    The base is held once, in the precision of the training: auto is 16 bits on a GPU and 32 on a CPU.
    """
    if estimate is None:
        return None
    precision = spec.training.precision
    is_single = precision == "fp32" or (precision == "auto" and not spec.resources.gpus_per_node)
    weights = estimate.total_parameters * (4 if is_single else 2)
    return round(weights * SLACK) + min(weights, SHARD_BYTES) + LIBRARIES_BYTES
