"""Measure our trainer and TRL's (with its defaults) on one GPU, in the settings of a published reference.

The reference is NVIDIA NeMo AutoModel on one H100: Llama-3.1-8B, LoRA of rank 16 on all linear layers, bf16, rows of
4,096 tokens, two at a time: 12,473 tokens/s, 402 TFLOP/s. Its tokens are made up, and so are ours: weights and tokens
are random, so nothing is downloaded. A run takes about five minutes, and begins nothing new after seven.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from finetune_api.estimate.architecture import architecture_of
from finetune_api.estimate.memory import job_memory
from finetune_api.estimate.speed import operations_per_token, tokens_per_step
from finetune_api.finetunejob import FineTuneJobSpec
from tools.testing.llama_8b import LLAMA_8B

NEMO_TOKENS_PER_SECOND, NEMO_TFLOPS = 12_473, 402
LAST_BEGIN_SECONDS = 420.0
"""Seconds after which no further contender is begun."""


@dataclass(frozen=True)
class Reference:
    """The settings of a comparison: the model's config.json, rows and steps."""

    config: dict[str, Any] = field(default_factory=lambda: LLAMA_8B)
    length: int = 4096
    batch: int = 2
    warm_up: int = 5
    steps: int = 20
    contenders: tuple[str, ...] = ("ours", "ours compiled", "TRL")


@dataclass(frozen=True)
class Figures:
    """Speed and memory of one contender. ``reserved`` is in bytes, and None without a GPU."""

    name: str
    tokens_per_second: float
    tflops: float
    reserved: int | None


def make_spec(reference: Reference) -> FineTuneJobSpec:
    """Return the spec of the job that is measured."""
    return FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "hf://meta-llama/Llama-3.1-8B"},
            "dataset": {"uri": "hf://made/up"},
            "method": {"lora": {"rank": 16, "targetModules": "all-linear"}},
            "training": {
                "perDeviceBatchSize": reference.batch,
                "gradientAccumulationSteps": 1,
                "maxLength": reference.length,
                "maxSteps": reference.warm_up + reference.steps,
                "packing": True,
                "gradientCheckpointing": "never",
            },
            "output": {"s3": {"bucket": "bench"}},
        }
    )


def measure(reference: Reference, progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure each contender, as long as there is time; return figures for a table or JSON."""
    began, spec = time.monotonic(), make_spec(reference)
    architecture = architecture_of(reference.config)
    figures, left_out = [], []
    for name in reference.contenders:
        if time.monotonic() - began > LAST_BEGIN_SECONDS:
            left_out.append(name)
            continue
        progress(name)
        with tempfile.TemporaryDirectory() as directory:
            figures.append(_measure_one(name, reference, spec, Path(directory)))
    return {
        "device": _device_name(),
        "estimated_bytes": job_memory(architecture, spec).total,
        "figures": [vars(item) for item in figures],
        "left_out": left_out,
        "reference": {"tokens_per_second": NEMO_TOKENS_PER_SECOND, "tflops": NEMO_TFLOPS},
        "seconds": time.monotonic() - began,
    }


def _device_name() -> str:
    from finetune_trainer.models import device

    return device.device_name()


def _measure_one(name: str, reference: Reference, spec: FineTuneJobSpec, directory: Path) -> Figures:
    """Train from random weights, and measure the time after the warm-up."""
    import torch
    from peft.helpers import disable_input_dtype_casting
    from transformers import TrainerCallback

    from finetune_trainer.methods.adapted_model import needs_no_casts
    from finetune_trainer.models import device, performance

    device.free_memory()
    if device.has_gpu():
        torch.cuda.reset_peak_memory_stats()
    moments: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device.has_gpu():
                torch.cuda.synchronize()
            moments.append(time.monotonic())

    make = _trl if name == "TRL" else _ours
    trainer = make(reference, spec, directory, Clock())
    no_casts = name != "TRL" and needs_no_casts(trainer.model, device.choose_precision(spec.training))
    with (
        performance.compile_layers(trainer.model, on=name == "ours compiled", required=False),
        disable_input_dtype_casting(trainer.model, active=no_casts),
    ):
        trainer.train()
    seconds = moments[-1] - moments[reference.warm_up - 1]
    speed = reference.steps * tokens_per_step(spec.training) / seconds
    operations = operations_per_token(architecture_of(reference.config), spec.method, spec.training)
    reserved = torch.cuda.max_memory_reserved() if device.has_gpu() else None
    return Figures(name, speed, speed * operations / 1e12, reserved)


def _ours(reference: Reference, spec: FineTuneJobSpec, directory: Path, clock: Any) -> Any:
    """Make the trainer as an attempt makes it."""
    import datasets  # type: ignore[import-untyped]

    from finetune_trainer.methods.adapted_model import add_adapter
    from finetune_trainer.methods.peft_config import BaseInfo
    from finetune_trainer.models import device, packed_attention, performance
    from finetune_trainer.runtime.process import Process
    from finetune_trainer.session.plan import Plan
    from finetune_trainer.session.session import Session
    from finetune_trainer.training.trainer import make_trainer

    base = _random_model(reference)
    packed_attention.install(base)
    model = add_adapter(base, spec.method, BaseInfo(directory, None, total_steps=reference.steps))
    steps = reference.warm_up + reference.steps
    plan = Plan(
        precision=device.choose_precision(spec.training),
        total_steps=steps,
        warmup_steps=0,
        save_steps=steps + 1,
        eval_steps=None,
        logging_steps=steps,
        gradient_checkpointing=False,
        optimizer=performance.choose_optimizer(spec.training),
        compile=False,
    )
    settings = SimpleNamespace(job=SimpleNamespace(spec=spec))
    session = cast(Session, SimpleNamespace(settings=settings, scratch=directory, process=Process()))
    rows = datasets.Dataset.from_list([row | {"seq_lengths": [reference.length]} for row in _rows(reference)])
    return make_trainer(session, plan, model=model, tokenizer=_tokenizer(directory), rows=rows, callbacks=[clock])


def _trl(reference: Reference, spec: FineTuneJobSpec, directory: Path, clock: Any) -> Any:
    """Make TRL's trainer with its own defaults, on the same model with PEFT's LoRA."""
    import datasets
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

    from finetune_trainer.models import device

    arguments = SFTConfig(
        output_dir=str(directory),
        max_length=reference.length,
        max_steps=reference.warm_up + reference.steps,
        per_device_train_batch_size=reference.batch,
        bf16=device.has_gpu(),
        use_cpu=not device.has_gpu(),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=reference.warm_up + reference.steps,
        dataloader_pin_memory=device.has_gpu(),
    )
    return SFTTrainer(
        model=_random_model(reference),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(_rows(reference)),
        processing_class=_tokenizer(directory),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[clock],
    )


def _random_model(reference: Reference) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from finetune_trainer.models import device

    torch.manual_seed(7)
    with torch.device("cuda" if device.has_gpu() else "cpu"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**reference.config), dtype=torch.bfloat16 if device.has_gpu() else torch.float32
        )
    model.config.use_cache = False
    return model


def _rows(reference: Reference) -> list[dict[str, Any]]:
    import random

    numbers = random.Random(7)
    rows = []
    for _ in range(4 * reference.batch):
        ids = [numbers.randrange(10, reference.config["vocab_size"]) for _ in range(reference.length)]
        rows.append({"input_ids": ids, "labels": ids})
    return rows


def _tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    from tools.testing.tiny_model import make_tiny_model

    return AutoTokenizer.from_pretrained(make_tiny_model(directory / "tokenizer"))
