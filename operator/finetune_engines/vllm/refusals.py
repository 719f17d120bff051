"""Explain the error answers of vLLM."""

import httpx

from finetune_api.reasons import Reason
from finetune_engines.base import EngineError
from finetune_engines.client import TRY_LATER, read_error, refuse_samples

_UNSUPPORTED = (
    "does not yet support",
    "does not support",
    "only supports",
    "unsupported",
    "expected target modules",
    "must be consistent with the base model",
    "doesn't contain tensors",
    "size mismatch",
    "shape",
    "must match the size of tensor",
    "rank_pattern",
    "modules_to_save",
)
"""Parts of vLLM's messages about an adapter that it can never serve."""


def explain_refusal(path: str, answer: httpx.Response) -> EngineError:
    """Turn an error answer into an EngineError, whose message has the remedy.

    Args:
        path: Path of the request, for example ``/v1/load_lora_adapter``.
        answer: The answer, with a status of 400 or above.
    """
    kind, message = read_error(answer)
    status = answer.status_code
    full = f"the engine answered {status} to {path}: {message}"
    if status in (401, 403):
        return EngineError(
            Reason.ENGINE_REFUSED,
            f"{full}; name the Secret that has the engine's API_KEY in spec.target.apiKeySecretRef",
            permanent=False,
        )
    if status in (404, 405) and path.endswith("lora_adapter") and kind != "NotFoundError":
        return EngineError(
            Reason.LORA_DISABLED,
            "the engine has no route for loading adapters: "
            "start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
            permanent=True,
        )
    if "greater than max_lora_rank" in message:
        return EngineError(
            Reason.RANK_TOO_HIGH,
            f"{message}; start vLLM with a higher --max-lora-rank, or train with a lower rank",
            permanent=True,
        )
    if "conflicts with a served base model" in message:
        return EngineError(Reason.SERVED_NAME_TAKEN, f"{message}; choose another servedName", permanent=True)
    if "out of vocabulary" in message or "maximum context length" in message:
        return refuse_samples(message)
    if status == 404 and "No adapter found" in message:
        return EngineError(
            Reason.ENGINE_REFUSED,
            f"{full}; the engine's container must be able to read the volume at that path",
            permanent=False,
        )
    if path.endswith("load_lora_adapter") and any(part in message.lower() for part in _UNSUPPORTED):
        return EngineError(Reason.ADAPTER_UNSUPPORTED, f"vLLM cannot serve this adapter: {message}", permanent=True)
    return EngineError(Reason.ENGINE_REFUSED, full, permanent=False, unexplained=status not in TRY_LATER)
