"""Load the base model onto its device, quantized if the method asks for it."""

import errno
import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from finetune_api.linear import SCORE_HEAD
from finetune_api.methods import Method
from finetune_api.reasons import Reason
from finetune_trainer.models import device, quantizable
from finetune_trainer.models.checksum import compute_checksums
from finetune_trainer.runtime.failures import DISK_FULL_MESSAGES, Failure, classify

QUANTIZED_PARAMETERS = ("Params4bit", "Int8Params")
"""The types of weights that bitsandbytes holds."""


def load_base(
    directory: Path,
    dtype: torch.dtype,
    quantization: BitsAndBytesConfig | None = None,
    *,
    scores_padded_with: int | None = None,
    placement: device.Placement = "gpu",
    gpu: int = 0,
    spread: bool = False,
    trust_remote_code: bool = False,
) -> Any:
    """Load the base model from its directory, onto a GPU if there is one.

    Args:
        directory: The directory of the model.
        dtype: The data type of the weights.
        quantization: How bitsandbytes quantizes the weights; None: they are not quantized.
        scores_padded_with: The id of the padding token, for a model that scores texts: it gets a head with one output,
            which starts at zero. None for a model that writes texts.
        placement: Where it computes, if there is a GPU. A model that is to be streamed is loaded into main memory.
        gpu: The number of the GPU.
        spread: Whether to distribute the layers over all GPUs.
        trust_remote_code: Whether Python code of the model may run.

    Raises:
        Failure: MODEL_UNSUPPORTED: transformers cannot load the model.
    """
    scores, out_of_memory_before = scores_padded_with is not None, device.count_full()
    if scores and quantization is not None:
        quantization.llm_int8_skip_modules = [SCORE_HEAD]
    try:
        with nullcontext() if quantization is None else quantizable.plain_linear_layers(directory):
            loaded: Any = (AutoModelForSequenceClassification if scores else AutoModelForCausalLM).from_pretrained(
                directory,
                **({"num_labels": 1, "pad_token_id": scores_padded_with} if scores else {}),
                dtype=dtype,
                quantization_config=quantization,
                device_map=None if placement != "gpu" or not device.has_gpu() else "auto" if spread else {"": gpu},
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:
        if device.count_full() > out_of_memory_before:
            # The message of transformers only says that it could not quantize or join the weights.
            raise torch.OutOfMemoryError("CUDA out of memory while the model was loaded") from error
        if is_machine_error(error):
            raise
        raise Failure(
            Reason.MODEL_UNSUPPORTED,
            f"transformers cannot load the model ({type(error).__name__}: {' '.join(str(error).split())[:600]})",
            "spec.model.uri",
        ) from error
    model, loading = loaded
    _check_weights(loading, scores=scores)
    if scores:
        torch.nn.init.zeros_(model.get_submodule(SCORE_HEAD).weight)
    if quantization is not None:
        _check_quantized(model)
    model.config.use_cache = False
    _turn_off_router_loss(model)
    _name_backbone(model)
    layers: Any = model.modules()
    for module in layers:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes would repack the frozen weights for a kernel without gradients at the first evaluation
            module.support_avx512bf16_for_cpu = False
    return model


def _turn_off_router_loss(model: Any) -> None:
    """Let a mixture of experts compute no auxiliary loss of its router, as transformers does by default.

    Its config.json may ask for one. TRL's trainers and some forward passes cannot compute it for every architecture.
    """
    config = model.config.get_text_config()
    if getattr(config, "output_router_logits", False):
        config.output_router_logits = False


def _name_backbone(model: Any) -> None:
    """Let ``base_model`` be the layers below the head, which TRL's fused head calls.

    Llama 4's class for text alone names an attribute that it does not have, so that it would be the model itself.
    """
    if model.base_model is model and isinstance(getattr(model, "model", None), torch.nn.Module):
        model.base_model_prefix = "model"


def _check_weights(loading: dict[str, Any], *, scores: bool) -> None:
    """Check that the files had every weight, in its shape.

    Args:
        loading: The loading information that ``from_pretrained`` returns.
        scores: Whether the model scores texts: its head is new.

    Raises:
        Failure: MODEL_UNSUPPORTED: a weight is missing, or has another shape.
    """
    if mismatched := sorted(loading["mismatched_keys"]):
        name, stored, built = mismatched[0]
        raise Failure(
            Reason.MODEL_UNSUPPORTED,
            f"{len(mismatched)} of the model's weights have another shape than config.json describes: {name} has "
            f"{list(stored)} in the files, and the model {list(built)}. Copy both from the original model",
            "spec.model.uri",
        )
    if missing := sorted(name for name in loading["missing_keys"] if not (scores and name.startswith(SCORE_HEAD))):
        raise Failure(
            Reason.MODEL_UNSUPPORTED,
            f"the model's files lack {len(missing)} of its weights, {missing[0]} among them: "
            "they are incomplete, or belong to another kind of model",
            "spec.model.uri",
        )


def _check_quantized(model: Any) -> None:
    """Check that bitsandbytes has quantized a layer. Raises Failure: MODEL_UNSUPPORTED."""
    if not any(type(weight).__name__ in QUANTIZED_PARAMETERS for weight in model.parameters()):
        raise Failure(
            Reason.MODEL_UNSUPPORTED,
            f"bitsandbytes quantizes none of the layers of a model of type {model.config.model_type!r}: "
            "choose lora, or dora without quantization",
            "spec.method",
        )


def is_machine_error(error: Exception) -> bool:
    """Return whether the machine (memory, disk) is the cause of an error in loading or adapting a model."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return True
    text = str(error)
    # transformers hides errors, such as too little memory, while it quantizes or joins weights.
    return (
        "automatic conversion of the weights" in text
        or any(sign in text for sign in DISK_FULL_MESSAGES)
        or classify(error)[0] is not Reason.TRAINER_ERROR
    )


def make_quantization_config(method: Method, precision: str) -> BitsAndBytesConfig | None:
    """Return how bitsandbytes quantizes the base weights; None for a method that does not quantize them."""
    quantization = method.quantization
    if quantization is None:
        return None
    if quantization.type == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    compute = quantization.compute_dtype
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.type,
        bnb_4bit_use_double_quant=quantization.double_quantization,
        bnb_4bit_compute_dtype=device.DTYPES[precision if compute == "auto" else compute],
    )


def digest_base_weights(model: Any) -> str:
    """Compute ``sha256:<hex>`` over names and bytes of all frozen weights as they are in memory.

    For a fully trained model, which has no frozen weights, all weights count; for a sharded model, those of this
    process. Quantized weights count with their quantized bytes. For weights on a GPU their checksums are used, which
    need no copy to main memory.
    """
    named = [(_strip_adapter_names(name), weight) for name, weight in model.named_parameters()]
    frozen = [(name, weight.detach()) for name, weight in named if not weight.requires_grad] or named
    return _digest_tensors(frozen)


def digest_all_weights(model: Any) -> str:
    """Compute ``sha256:<hex>`` over names and bytes of all weights and buffers as they are in memory."""
    return _digest_tensors(
        [(name, tensor.detach()) for name, tensor in (*model.named_parameters(), *model.named_buffers())]
    )


def _digest_tensors(tensors: list[tuple[str, Any]]) -> str:
    """Compute the digest of named tensors. Of those on a GPU the checksums are used."""
    tensors = [
        (name, weight.to_local() if isinstance(weight, DTensor) else weight)
        for name, weight in sorted(tensors, key=lambda item: item[0])
    ]
    on_gpu = [(name, weight) for name, weight in tensors if weight.is_cuda]
    sums = [compute_checksums(weight).to(on_gpu[0][1].device) for _, weight in on_gpu]
    checksums = dict(zip((name for name, _ in on_gpu), torch.stack(sums).tolist() if sums else [], strict=True))

    def digest(item: tuple[str, Any]) -> bytes:
        name, tensor = item
        if name in checksums:
            return hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)} {checksums[name]}".encode()).digest()
        content: Any = tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
        return hashlib.sha256(name.encode() + hashlib.sha256(content).digest()).digest()

    with ThreadPoolExecutor(4) as pool:
        return f"sha256:{hashlib.sha256(b''.join(pool.map(digest, tensors))).hexdigest()}"


def _strip_adapter_names(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


def choose_serving_dtype(model: Any) -> torch.dtype:
    """Return fp32 for precise comparisons, or bf16 if fp32 weights need over a third of the GPU."""
    if not device.has_gpu():
        return torch.float32
    torch.set_float32_matmul_precision("high")
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    size = 4 * sum(count_weights(weight) for weight in base.parameters())
    return torch.float32 if size * 3 < device.gpu_bytes() else torch.bfloat16


def count_weights(weight: Any) -> int:
    """Count the numbers in a weight; bitsandbytes stores two numbers of 4 bits in each element."""
    state = getattr(weight, "quant_state", None)
    return int((weight if state is None else state.shape).numel())
