"""The base model on its device, in the data type that fits, quantised where the method asks for it, and its adapter."""

import gc
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from finetune_api.finetunejob import Training
from finetune_api.methods import LoraFields, Method
from finetune_api.reasons import Reason
from finetune_trainer.failures import Failure

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def has_gpu() -> bool:
    """Whether this process has an NVIDIA GPU."""
    return torch.cuda.is_available()


def precision_of(training: Training) -> str:
    """``bf16``, ``fp16`` or ``fp32``. Raises Failure for fp16 without a GPU."""
    if training.precision == "auto":
        return "bf16" if has_gpu() and torch.cuda.is_bf16_supported() else "fp32"
    if training.precision == "fp16" and not has_gpu():
        raise Failure(Reason.SPEC_INVALID, "fp16 needs a GPU: choose auto, bf16 or fp32", "spec.training.precision")
    return training.precision


def load_tokenizer(directory: Path) -> Any:
    """The model's tokenizer, with a padding token. Raises Failure(MODEL_UNSUPPORTED)."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise Failure(
            Reason.MODEL_UNSUPPORTED, f"the model's tokenizer cannot be loaded: {error}", "spec.model.uri"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def load_base(directory: Path, dtype: torch.dtype, quantization: BitsAndBytesConfig | None = None) -> Any:
    """The base model from its directory. Raises Failure(MODEL_UNSUPPORTED) for a model that transformers cannot load as it is."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            quantization_config=quantization,
            device_map={"": 0} if has_gpu() else None,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (ValueError, KeyError) as error:
        raise Failure(
            Reason.MODEL_UNSUPPORTED, f"transformers cannot load the model: {error}", "spec.model.uri"
        ) from error
    model.config.use_cache = False
    layers: Any = model.modules()
    for module in layers:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes would repack the frozen weights for a bf16 kernel without gradients as soon as a model in training is evaluated
            module.support_avx512bf16_for_cpu = False
    return model


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


def add_adapter(base: Any, method: Method, name: str, revision: str | None) -> PeftModel:
    """The base with a fresh adapter. Raises Failure(TARGET_MODULES_NOT_FOUND)."""
    config = method.config
    assert isinstance(config, LoraFields), "other methods follow"  # noqa: S101
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=int(config.alpha) if float(config.alpha).is_integer() else config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        use_rslora=config.use_rslora,
        target_modules=config.target_modules,
        revision=revision,
    )
    try:
        return get_peft_model(base, lora)
    except ValueError as error:
        if "target modules" not in str(error).lower():
            raise
        raise Failure(
            Reason.TARGET_MODULES_NOT_FOUND, str(error), f"spec.method.{method.name}.targetModules"
        ) from error


def to_float32(model: Any) -> None:
    """Hold what is trained in fp32: an optimizer step is often smaller than bf16 can tell, and a resumed run must be exact."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)


def trainable(model: Any) -> int:
    """How many parameters are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def base_digest(model: Any) -> str:
    """``sha256:<hex>`` over names and bytes of all frozen weights, as they lie in memory (quantised ones: the quantised bytes)."""
    frozen = [(_plain(name), weight.detach()) for name, weight in model.named_parameters() if not weight.requires_grad]
    frozen.sort(key=lambda item: item[0])

    def digest(item: tuple[str, torch.Tensor]) -> bytes:
        name, tensor = item
        content: Any = tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
        return hashlib.sha256(name.encode() + hashlib.sha256(content).digest()).digest()

    with ThreadPoolExecutor(4) as pool:
        return f"sha256:{hashlib.sha256(b''.join(pool.map(digest, frozen))).hexdigest()}"


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


def adapted_suffixes(model: Any) -> list[str]:
    """The last parts of the names of the modules that carry an adapter, sorted."""
    return sorted(
        {name.split(".lora_A.")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if ".lora_A." in name}
    )


def serving_dtype(model: Any) -> torch.dtype:
    """fp32, in which comparisons are sharpest; bf16 for a model that would fill more than a third of the GPU so."""
    if not has_gpu():
        return torch.float32
    torch.set_float32_matmul_precision("high")
    size = 4 * model.get_base_model().num_parameters()
    return torch.float32 if size * 3 < torch.cuda.get_device_properties(0).total_memory else torch.bfloat16


def release() -> None:
    """Give memory back that is no longer referred to."""
    gc.collect()
    if has_gpu():
        torch.cuda.empty_cache()
