"""Explain the error answers of SGLang."""

import httpx

from finetune_api.reasons import Reason
from finetune_engines.base import EngineError
from finetune_engines.client import TRY_LATER, read_error, refuse_samples

LOAD, UNLOAD = "/load_lora_adapter", "/unload_lora_adapter"
NAME_IN_USE = ("already loaded", "already exists", "incomplete unload")
"""Parts of the messages about a name that must be unloaded before it can be loaded."""
_NO_SAMPLES = ("vocab", "context length")


def explain_refusal(path: str, answer: httpx.Response) -> EngineError:
    """Turn an error answer into an EngineError, whose message has the remedy.

    Args:
        path: Path of the request, for example ``/load_lora_adapter``.
        answer: The answer, with a status of 400 or above.
    """
    _, message = read_error(answer)
    status = answer.status_code
    full = f"the engine answered {status} to {path}: {message}"
    if status in (401, 403):
        return EngineError(
            Reason.ENGINE_REFUSED,
            f"{full}; name the Secret that has the engine's API_KEY, and ADMIN_API_KEY if it has an --admin-api-key, "
            "in spec.target.apiKeySecretRef",
            permanent=False,
        )
    if path in (LOAD, UNLOAD):
        return _explain_load(full, status, message)
    if any(part in message for part in _NO_SAMPLES):
        return refuse_samples(message)
    return EngineError(Reason.ENGINE_REFUSED, full, permanent=False, unexplained=status not in TRY_LATER)


def _explain_load(full: str, status: int, message: str) -> EngineError:
    if "LoRA is not enabled" in message or status in (404, 405):
        return EngineError(
            Reason.LORA_DISABLED,
            f"{full}; start SGLang with --enable-lora, --max-lora-rank and --lora-target-modules all",
            permanent=True,
        )
    if "data-parallel" in message:
        return EngineError(
            Reason.ENGINE_REFUSED, f"{full}; start SGLang with --dp-size 1, and more pods in its place", permanent=True
        )
    if "incompatible with the current LoRA memory pool" in message:
        return EngineError(
            Reason.ADAPTER_UNSUPPORTED,
            f"{full}; start SGLang with --max-lora-rank of the adapter's rank or more, and --lora-target-modules all",
            permanent=True,
        )
    if "doesn't support" in message:
        return EngineError(Reason.ADAPTER_UNSUPPORTED, f"SGLang cannot serve this adapter: {message}", permanent=True)
    if "not allowed to pin all slots" in message:
        return EngineError(
            Reason.ENGINE_REFUSED,
            f"{full}; each adapter of an AdapterDeployment is pinned, and one more while it is changed: "
            "start SGLang with a higher --max-loras-per-batch",
            permanent=False,
        )
    if "trying to evict" in message:
        return EngineError(
            Reason.ENGINE_REFUSED,
            f"{full}; all its adapters are pinned: start SGLang with a higher --max-loaded-loras, or without it",
            permanent=False,
        )
    if "No such file or directory" in message:
        return EngineError(
            Reason.ENGINE_REFUSED,
            f"{full}; the engine's container must be able to read the volume at that path",
            permanent=False,
        )
    in_use = any(part in message for part in NAME_IN_USE)
    return EngineError(Reason.ENGINE_REFUSED, full, permanent=False, unexplained=not in_use)
