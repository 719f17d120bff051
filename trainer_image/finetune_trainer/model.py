"""The base model on its device, in the data type that fits, quantised where the method asks for it, and its adapter."""

import errno
import gc
import hashlib
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig

from finetune_api.finetunejob import Training
from finetune_api.methods import Method
from finetune_api.reasons import Reason
from finetune_trainer.bottleneck import Adapted
from finetune_trainer.failures import Failure
from finetune_trainer.logs import log

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


TOKENIZER_FILES = (
    "tokenizer", "special_tokens_map.json", "added_tokens.json", "vocab.", "merges.txt", "spiece.model", "chat_template", "generation_config.json",
)  # fmt: skip
"""How the names of a tokenizer's files begin."""


SCORE = "score"
"""transformers' name of the head of a decoder that scores texts."""
QUANTISED = ("Params4bit", "Int8Params")
"""The types of weights that bitsandbytes holds."""

Made = TypeVar("Made")


def has_gpu() -> bool:
    """Whether this process has an NVIDIA GPU."""
    return torch.cuda.is_available()


def gpu_bytes() -> int:
    """The GPU's memory."""
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)


def device_name() -> str:
    """The device for people."""
    return torch.cuda.get_device_name() if has_gpu() else f"CPU ({torch.get_num_threads()} threads)"


def precision_of(training: Training) -> str:
    """``bf16``, ``fp16`` or ``fp32``. Raises Failure for fp16 without a GPU."""
    if training.precision == "auto":
        return "bf16" if has_gpu() and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if training.precision == "fp16" and not has_gpu():
        raise Failure(Reason.SPEC_INVALID, "fp16 needs a GPU: choose auto, bf16 or fp32", "spec.training.precision")
    return training.precision


def load_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """The model's tokenizer, with a padding token. Raises Failure(MODEL_UNSUPPORTED)."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=trust_remote_code)
    except (ValueError, OSError, KeyError) as error:
        raise Failure(
            Reason.MODEL_UNSUPPORTED, f"the model's tokenizer cannot be loaded: {error}", "spec.model.uri"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def load_base(
    directory: Path,
    dtype: torch.dtype,
    quantization: BitsAndBytesConfig | None = None,
    *,
    scores_padded_with: int | None = None,
    on_cpu: bool = False,
    gpu: int = 0,
    spread: bool = False,
    trust_remote_code: bool = False,
) -> Any:
    """The base model from its directory, on the GPU of this number if there is one. Raises Failure(MODEL_UNSUPPORTED) for a model that transformers cannot load as it is.

    ``spread``: over all GPUs, some of the layers on each.
    With the id of a padding token it has a head of one number, zero at first, with which it scores texts instead of writing them.
    """
    scores = scores_padded_with is not None
    if scores and quantization is not None:
        quantization.llm_int8_skip_modules = [SCORE]
    try:
        loaded: Any = (AutoModelForSequenceClassification if scores else AutoModelForCausalLM).from_pretrained(
            directory,
            **({"num_labels": 1, "pad_token_id": scores_padded_with} if scores else {}),
            dtype=dtype,
            quantization_config=quantization,
            device_map=None if on_cpu or not has_gpu() else "auto" if spread else {"": gpu},
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (ValueError, KeyError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise  # the disk, not the model
        raise Failure(
            Reason.MODEL_UNSUPPORTED, f"transformers cannot load the model: {error}", "spec.model.uri"
        ) from error
    model, loading = loaded
    missing = sorted(name for name in loading["missing_keys"] if not (scores and name.startswith(SCORE)))
    if missing:
        raise Failure(
            Reason.MODEL_UNSUPPORTED,
            f"the model's files lack {len(missing)} of its weights, {missing[0]} among them: they are not complete, or those of another kind of model",
            "spec.model.uri",
        )
    if scores:
        torch.nn.init.zeros_(model.get_submodule(SCORE).weight)
    if quantization is not None and not any(type(weight).__name__ in QUANTISED for weight in model.parameters()):
        raise Failure(
            Reason.MODEL_UNSUPPORTED,
            f"bitsandbytes quantises none of the layers of a model of type {model.config.model_type!r}: choose lora, or dora without quantization",
            "spec.method",
        )
    model.config.use_cache = False
    layers: Any = model.modules()
    for module in layers:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes would repack the frozen weights for a bf16 kernel without gradients as soon as a model in training is evaluated
            module.support_avx512bf16_for_cpu = False
    return model


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Put the model's tokenizer beside weights, so that they are a model by themselves."""
    for path in sorted(source.iterdir()):
        if path.name.startswith(TOKENIZER_FILES) and path.is_file():
            shutil.copyfile(path, directory / path.name)


def quantization_of(method: Method, precision: str) -> BitsAndBytesConfig | None:
    """How bitsandbytes is to hold the base weights; None for a method that leaves them as they are."""
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
        bnb_4bit_compute_dtype=DTYPES[precision if compute == "auto" else compute],
    )


def trainable(model: Any) -> int:
    """How many parameters are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def base_digest(model: Any) -> str:
    """``sha256:<hex>`` over names and bytes of all frozen weights, as they lie in memory (quantised ones: the quantised bytes).

    Of a model that is trained whole, and so has none, it is the digest of all weights; of one that is sharded that of this process's part.
    """
    named = [(_plain(name), weight) for name, weight in model.named_parameters()]
    frozen = [(name, weight.detach()) for name, weight in named if not weight.requires_grad] or named
    frozen.sort(key=lambda item: item[0])

    def digest(item: tuple[str, Any]) -> bytes:
        name, tensor = item
        if isinstance(tensor, DTensor):
            tensor = tensor.to_local()
        content: Any = tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
        return hashlib.sha256(name.encode() + hashlib.sha256(content).digest()).digest()

    with ThreadPoolExecutor(4) as pool:
        return f"sha256:{hashlib.sha256(b''.join(pool.map(digest, frozen))).hexdigest()}"


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


def adapted_suffixes(model: Any) -> list[str]:
    """The last parts of the names of the modules that carry an adapter, sorted."""
    return sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, BaseTunerLayer | Adapted)
        }
    )


def serving_dtype(model: Any) -> torch.dtype:
    """fp32, in which comparisons are sharpest; bf16 for a model that would fill more than a third of the GPU so."""
    if not has_gpu():
        return torch.float32
    torch.set_float32_matmul_precision("high")
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    size = 4 * sum(unpacked(weight) for weight in base.parameters())
    return torch.float32 if size * 3 < gpu_bytes() else torch.bfloat16


def unpacked(weight: Any) -> int:
    """The numbers that a weight stands for; bitsandbytes keeps two of 4 bits in each element."""
    state = getattr(weight, "quant_state", None)
    return int((weight if state is None else state.shape).numel())


def where_it_fits(work: Callable[[bool], Made]) -> Made:
    """What ``work`` makes, told whether to keep to the CPU: only where the GPU is too small.

    For what follows the training, where a smaller batch would not help and another attempt would only come here again: a base that was trained quantised is
    larger as it is served.
    """
    try:
        return work(False)
    except torch.OutOfMemoryError:
        log.warning("the base does not fit into the GPU as it is served: going on on the CPU, which takes longer")
    release()
    return work(True)


def release() -> None:
    """Give memory back that is no longer referred to."""
    gc.collect()
    if has_gpu():
        torch.cuda.empty_cache()
