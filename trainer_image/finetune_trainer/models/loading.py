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

from finetune_api.methods import Method
from finetune_api.reasons import Reason
from finetune_trainer.models import device, quantizable
from finetune_trainer.models.checksum import compute_checksums
from finetune_trainer.runtime.failures import DISK_FULL_MESSAGES, Failure, classify

SCORE_HEAD = "score"
"""transformers' name of the head of a decoder that scores texts."""
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
        quantization: How bitsandbytes quantizes the weights; None for not at all.
        scores_padded_with: The id of the padding token, for a model that scores texts: it gets a head with one output,
            which starts at zero. None for a model that writes texts.
        placement: Where it computes, if there is a GPU. One whose layers will be streamed is loaded into main memory.
        gpu: The number of the GPU.
        spread: Whether to distribute the layers over all GPUs.
        trust_remote_code: Whether Python code of the model may run.

    Raises:
        Failure: MODEL_UNSUPPORTED if transformers cannot load the model as it is.
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
            # transformers says only that it could not quantize or join the weights
            raise torch.OutOfMemoryError("CUDA out of memory while the model was loaded") from error
        if is_machines_fault(error):
            raise
        raise Failure(
            Reason.MODEL_UNSUPPORTED,
            f"transformers cannot load the model ({type(error).__name__}: {' '.join(str(error).split())[:600]})",
            "spec.model.uri",
        ) from error
    model, loading = loaded
    missing = sorted(name for name in loading["missing_keys"] if not (scores and name.startswith(SCORE_HEAD)))
    if mismatched := sorted(loading["mismatched_keys"]):
        name, stored, built = mismatched[0]
        raise Failure(
            Reason.MODEL_UNSUPPORTED,
            f"{len(mismatched)} of the model's weights have another shape than config.json describes: {name} has "
            f"{list(stored)} in the files, and the model {list(built)}. Take both from the original model",
            "spec.model.uri",
        )
    if missing:
        raise Failure(
            Reason.MODEL_UNSUPPORTED,
            f"the model's files lack {len(missing)} of its weights, {missing[0]} among them: "
            "they are incomplete, or belong to another kind of model",
            "spec.model.uri",
        )
    if scores:
        torch.nn.init.zeros_(model.get_submodule(SCORE_HEAD).weight)
    if quantization is not None and not any(
        type(weight).__name__ in QUANTIZED_PARAMETERS for weight in model.parameters()
    ):
        raise Failure(
            Reason.MODEL_UNSUPPORTED,
            f"bitsandbytes quantizes none of the layers of a model of type {model.config.model_type!r}: "
            "choose lora, or dora without quantization",
            "spec.method",
        )
    model.config.use_cache = False
    layers: Any = model.modules()
    for module in layers:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes would repack the frozen weights for a kernel without gradients at the first evaluation
            module.support_avx512bf16_for_cpu = False
    return model


def is_machines_fault(error: Exception) -> bool:
    """Return whether memory or disk failed while the model was loaded or adapted, and not the model."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return True
    text = str(error)
    # transformers says no more of an error, such as too little memory, while it quantizes or joins weights
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

    Of a fully trained model, which has no frozen weights, it is the digest of all weights; of a sharded model, that of
    this process's shard. Quantized weights count with their quantized bytes. Of weights on a GPU it is taken of their
    checksums, which need no copy to main memory.
    """
    named = [(_strip_adapter_names(name), weight) for name, weight in model.named_parameters()]
    frozen = [(name, weight.detach()) for name, weight in named if not weight.requires_grad] or named
    frozen.sort(key=lambda item: item[0])
    frozen = [(name, weight.to_local() if isinstance(weight, DTensor) else weight) for name, weight in frozen]
    on_gpu = [(name, weight) for name, weight in frozen if weight.is_cuda]
    sums = [compute_checksums(weight).to(on_gpu[0][1].device) for _, weight in on_gpu]
    checksums = dict(zip((name for name, _ in on_gpu), torch.stack(sums).tolist() if sums else [], strict=True))

    def digest(item: tuple[str, Any]) -> bytes:
        name, tensor = item
        if name in checksums:
            return hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)} {checksums[name]}".encode()).digest()
        content: Any = tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
        return hashlib.sha256(name.encode() + hashlib.sha256(content).digest()).digest()

    with ThreadPoolExecutor(4) as pool:
        return f"sha256:{hashlib.sha256(b''.join(pool.map(digest, frozen))).hexdigest()}"


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
