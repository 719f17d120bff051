"""Run and record the same training with our trainer, with TRL's trainer alone and with a common script."""

import json
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bench.trainer.data import BenchData
from finetune_api.messages import ProgressReport
from finetune_trainer.session.progress import Reporter
from tools.testing.s3_server import S3Server
from tools.testing.trainer_jobs import Workbench, train

RANK, ALPHA, RATE, SEED = 8, 16, 1e-3, 42


@dataclass(frozen=True)
class Course:
    """The record of each step of a training.

    Attributes:
        ends: Time at which each step ended, in seconds of a monotonic clock.
        cpu: CPU seconds of the process at the end of each step.
        losses: Loss of each step.
        tokens: Tokens up to the end of each step, without padding.
    """

    ends: list[float]
    cpu: list[float]
    losses: list[float]
    tokens: list[int]

    def seconds(self, first: int) -> float:
        """Return the seconds from the end of step ``first`` to that of the last."""
        return self.ends[-1] - self.ends[first - 1]

    def cpu_seconds(self, first: int) -> float:
        """Return the CPU seconds of all threads from the end of step ``first`` to that of the last."""
        return self.cpu[-1] - self.cpu[first - 1]

    def tokens_per_second(self, first: int) -> float:
        """Return the tokens per second after step ``first``, without padding."""
        return (self.tokens[-1] - self.tokens[first - 1]) / self.seconds(first)

    def tokens_per_cpu_second(self, first: int) -> float:
        """Return the tokens per CPU second after step ``first``, which a busy machine changes less."""
        return (self.tokens[-1] - self.tokens[first - 1]) / self.cpu_seconds(first)


@dataclass(frozen=True)
class Shape:
    """The rows of a step, whether they are packed, and the number of steps (None: one epoch)."""

    batch: int
    accumulation: int
    packing: bool
    steps: int | None
    checkpoint_every: int


class _Clock(Reporter):
    """Records the time of the first report of each step."""

    def __init__(self) -> None:
        super().__init__(None, Path())
        self.seen: dict[int, tuple[float, float]] = {}

    def submit(self, report: ProgressReport) -> None:
        self.seen.setdefault(report.progress.step, _now())


def masked(data: BenchData, server: S3Server, scratch: Path, shape: Shape) -> Course:
    """Run one attempt at a FineTuneJob whose packed examples have a mask, as transformers makes it."""
    from finetune_trainer.models import packed_attention

    with patch.object(packed_attention, "install", return_value=False):
        return ours(data, server, scratch, shape)


def waiting_for_the_disk(
    data: BenchData, server: S3Server, scratch: Path, shape: Shape, method: dict[str, Any]
) -> Course:
    """Run one attempt at a FineTuneJob that writes each checkpoint before it goes on."""
    from finetune_trainer.checkpoints import snapshot

    with patch.object(snapshot, "MEMORY_SHARE", 0):
        return ours(data, server, scratch, shape, method)


def ours(
    data: BenchData,
    server: S3Server,
    scratch: Path,
    shape: Shape,
    method: dict[str, Any] | None = None,
    **training: Any,
) -> Course:
    """Run one attempt at a FineTuneJob, by default with a LoRA, with checkpoints in S3.

    Raises:
        RuntimeError: The attempt did not succeed.
    """
    bench = Workbench(server, server.create_bucket(f"bench-{uuid.uuid4().hex[:12]}"), data.model, scratch / "ours")
    bench.dataset(BenchData.jsonl(data.texts))
    bench.dataset(BenchData.jsonl(data.held_out), "held-out.jsonl")
    settings = bench.settings(
        dataset={
            "uri": "configmap://data/train.jsonl",
            "format": "text",
            "validation": {"uri": "configmap://data/held-out.jsonl"},
        },
        method=method or {"lora": {"rank": RANK, "alpha": ALPHA}},
        training={
            "perDeviceBatchSize": shape.batch,
            "gradientAccumulationSteps": shape.accumulation,
            "maxLength": data.size.max_length,
            "learningRate": RATE,
            "scheduler": "constant",
            "packing": shape.packing,
            "seed": SEED,
        }
        | ({"maxSteps": shape.steps} if shape.steps else {"epochs": 1})
        | training,
        evaluation={"samples": 0},
        checkpoint={"everySteps": shape.checkpoint_every},
    )
    clock = _Clock()
    result, _ = train(settings, lambda _: clock)
    if result.reason != "Succeeded":
        raise RuntimeError(f"{result.reason}: {result.message}")
    logged = [json.loads(line) for line in bench.read("team/job/adapter/metrics.jsonl").splitlines()]
    shutil.rmtree(scratch / "ours")
    moments = [clock.seen[step] for step in sorted(clock.seen) if step]
    return Course(
        *_columns(moments), [entry["loss"] for entry in logged], [round(entry["num_tokens"]) for entry in logged]
    )


def bare(data: BenchData, scratch: Path, shape: Shape) -> Course:
    """Train with TRL's SFTTrainer on the same sequences with the same settings. Checkpoints go to the disk."""
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

    arguments = SFTConfig(
        **_arguments(scratch / "bare", shape),
        max_length=data.size.max_length,
        packing=shape.packing,
        gradient_checkpointing=False,
        bf16=False,
    )
    rows = _rows(data.texts)
    make_trainer = partial(
        SFTTrainer,
        model=_model(data, packed=shape.packing),
        args=arguments,
        train_dataset=rows,
        processing_class=_tokenizer(data),
    )
    return _run(make_trainer, scratch / "bare", lambda state: _logged(state, "num_tokens"))


def script(data: BenchData, scratch: Path, shape: Shape) -> Course:
    """Train as tutorials do: with transformers' Trainer and rows padded to ``max_length``, without packing."""
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    tokenizer = _tokenizer(data)

    def encode(rows: dict[str, list[str]]) -> Any:
        texts = [text + tokenizer.eos_token for text in rows["text"]]
        return tokenizer(texts, truncation=True, max_length=data.size.max_length, padding="max_length")

    rows = _rows(data.texts).map(encode, batched=True, remove_columns=["text"])
    # the collator masks padding tokens in the loss; here the end of text is another token, so it stays in the loss
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    arguments = TrainingArguments(**_arguments(scratch / "script", shape), include_num_input_tokens_seen="non_padding")
    make_trainer = partial(Trainer, model=_model(data), args=arguments, train_dataset=rows, data_collator=collator)
    return _run(make_trainer, scratch / "script", lambda state: _logged(state, "num_input_tokens_seen"))


def _arguments(directory: Path, shape: Shape) -> dict[str, Any]:
    return {
        "output_dir": str(directory),
        "per_device_train_batch_size": shape.batch,
        "gradient_accumulation_steps": shape.accumulation,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "seed": SEED,
        "data_seed": SEED,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": shape.checkpoint_every,
        "save_total_limit": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    } | ({"max_steps": shape.steps} if shape.steps else {"num_train_epochs": 1})


def _rows(texts: list[str]) -> Any:
    import datasets  # type: ignore[import-untyped]

    return datasets.Dataset.from_list([{"text": text} for text in texts])


def _tokenizer(data: BenchData) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(data.model)


def _model(data: BenchData, *, packed: bool = False) -> Any:
    """Load the base in fp32, and add the LoRA of our FineTuneJob.

    Packed examples get our attention, so that two loops are compared and not two kinds of attention.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, set_seed

    from finetune_trainer.models import packed_attention

    set_seed(SEED)
    base = AutoModelForCausalLM.from_pretrained(data.model, dtype=torch.float32)
    base.config.use_cache = False
    if packed:
        packed_attention.install(base)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(base, lora)


def _run(make: Callable[..., Any], directory: Path, tokens: Callable[[Any], list[int]]) -> Course:
    from transformers import PrinterCallback, TrainerCallback

    moments: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            moments.append(_now())

    trainer = make(callbacks=[Clock()])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    shutil.rmtree(directory)
    return Course(*_columns(moments), losses, tokens(trainer.state))


def _logged(state: Any, name: str) -> list[int]:
    return [round(entry[name]) for entry in state.log_history if "loss" in entry]


def _now() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def _columns(moments: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [clock for clock, _ in moments], [computed for _, computed in moments]
