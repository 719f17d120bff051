"""Benchmark the trainer: compare it with TRL alone and with a common script, on one machine."""

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.trainer.data import Size
from bench.trainer.picture import bars
from finetune_api.reasons import EXIT_CODES, Reason

AIMS = {"overhead": "≤ 2 %", "script": "≥ 3", "loss": "≤ 2 %", "refused": "< 1 s"}
LARGE = Size(hidden=1024, layers=12, rows=6200)
"""Sizes with which the time to the first step is measured: 150 million weights, and all available texts."""
CHECKPOINTED = Size(hidden=768, layers=8, max_length=64, rows=64, overhead_steps=14, checkpoint_every=4, rounds=3)
"""Sizes of a full fine-tuning whose checkpoints have 0.8 GB."""
TINY = Size(64, 2, 350, 64, rows=40, overhead_steps=4, checkpoint_every=2, rounds=0, starts=1, compiled=False)
PARTS = ("overhead", "script", "start", "switches", "phases", "checkpoints")


def main(words: list[str] | None = None) -> int:
    """Parse the arguments, run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part; may be given more than once")
    parser.add_argument("--rounds", type=int, help="pairs of runs of each comparison")
    parser.add_argument("--tiny", action="store_true", help="run a few steps of a tiny model, to test the benchmark")
    parser.add_argument("--gpu", action="store_true", help="measure one GPU in the settings of NVIDIA's reference")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write the useful tokens per second as an SVG")
    parser.add_argument("--output", choices=["table", "json"], default="table")
    arguments = parser.parse_args(words)
    _quiet()
    if arguments.gpu:
        return _measure_gpu(arguments.output)
    size, large, checkpointed = (TINY, TINY, TINY) if arguments.tiny else (Size(), LARGE, CHECKPOINTED)
    if arguments.rounds:
        size = Size(**{**vars(size), "rounds": arguments.rounds})
    from bench.trainer.measure import measure  # after the environment is set: it imports torch

    with Console(stderr=True).status("") as status:
        results = {"machine": _machine()} | measure(
            size, large, checkpointed, tuple(arguments.only or PARTS), status.update
        )
    if arguments.picture and "script" in results:
        arguments.picture.write_text(draw_tokens_per_second(results["script"]), encoding="utf-8")
    if arguments.output == "json":
        print(json.dumps(results, indent=2))
    else:
        Console().print(make_table(results))
    return 0


def _measure_gpu(output: str) -> int:
    """Measure one GPU and print the results; return the trainer's exit code for a missing GPU if there is none."""
    from bench.trainer.gpu import Reference, measure
    from finetune_trainer.models import device

    if not device.has_gpu():
        sys.stderr.write("python -m bench.trainer --gpu: PyTorch sees no GPU here, and this measures one\n")
        return EXIT_CODES[Reason.GPU_NOT_VISIBLE]
    with Console(stderr=True).status("") as status:
        results = measure(Reference(), status.update)
    if output == "json":
        print(json.dumps(results, indent=2))
    else:
        Console().print(make_gpu_table(results))
    return 0


def make_gpu_table(results: dict[str, Any]) -> Table:
    """Return a table of the contenders on one GPU, with the reference and the estimate."""
    table = Table(title=f"Llama-3.1-8B, LoRA r16 on all linear layers, bf16, 2 × 4,096 tokens on {results['device']}")
    for column in ("", "tokens/s", "TFLOP/s", "GiB reserved"):
        table.add_column(column, justify="left" if not column else "right")
    for figures in results["figures"]:
        memory = "" if figures["reserved"] is None else f"{figures['reserved'] / 2**30:.1f}"
        table.add_row(figures["name"], f"{figures['tokens_per_second']:,.0f}", f"{figures['tflops']:.0f}", memory)
    for name in results["left_out"]:
        table.add_row(name, "no time left", "", "")
    table.add_row("our estimate", "", "", f"{results['estimated_bytes'] / 2**30:.1f}")
    reference = results["reference"]
    table.add_row(
        "NVIDIA NeMo AutoModel, one H100", f"{reference['tokens_per_second']:,}", str(reference["tflops"]), ""
    )
    return table


def _quiet() -> None:
    """Configure the libraries as the trainer does, with one thread unless ``OMP_NUM_THREADS`` is set."""
    import logging
    import warnings

    from finetune_trainer.runtime.libraries import library_environment

    os.environ.update(library_environment({"OMP_NUM_THREADS": "1", **os.environ}))
    warnings.simplefilter("ignore")
    logging.getLogger("finetune_trainer").setLevel(logging.ERROR)
    import datasets  # type: ignore[import-untyped]
    import torch
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def _machine() -> dict[str, Any]:
    return {"processor": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}


def draw_tokens_per_second(script_results: dict[str, Any]) -> str:
    """Return an SVG that compares the useful tokens per second of our trainer and of the script."""
    rows = {
        "finetune-operator, packed": script_results["ours_tokens_per_second"],
        "script, padded": script_results["script_tokens_per_second"],
    }
    return bars("Useful (non-padding) tokens per second", rows)


def make_table(results: dict[str, Any]) -> Table:
    """Return a table of all results."""
    machine = results["machine"]
    table = Table(
        title=f"{machine['cores']} cores, {results['threads']} thread, load {machine['load']:.1f} at the start"
    )
    for column in ("", "median", "lowest and highest", "aim"):
        table.add_column(column, justify="left" if not column else "right")

    def row(title: str, values: dict[str, float], style: str, aim: str = "") -> None:
        low, high = (format(values[key], style) for key in ("min", "max"))
        table.add_row(title, format(values["median"], style), f"{low} … {high}", aim)

    if section := results.get("overhead"):
        table.add_row(
            "our loop over TRL's, steps at their fastest", f"{section['undisturbed']:+.1%}", "", AIMS["overhead"]
        )
        row("  all of the time", section["wall"], "+.1%")
        row("  seconds of computing, all threads", section["cpu"], "+.1%")
        row("  seconds of our step", section["ours_seconds_per_step"], ".3f")
        table.add_row("  same losses, bit for bit", "yes" if section["same_losses"] else "no", "", "yes")
    if section := results.get("script"):
        row("useful tokens/s, ours over the script", section["ratio"], ".2f", AIMS["script"])
        row("  the same for a second of computing", section["ratio_cpu"], ".2f")
        row("  ours", section["ours_tokens_per_second"], ",.0f")
        row("  script", section["script_tokens_per_second"], ",.0f")
        table.add_row("  loss per token differs by at most", f"{section['loss_difference']:.1%}", "", AIMS["loss"])
    for name, values in results.get("switches", {}).items():
        row(f"useful tokens/s with {name} over without", values["ratio"], ".2f")
        row("  the same for a second of computing", values["ratio_cpu"], ".2f")
    if section := results.get("checkpoints"):
        row("time with checkpoints before going on, over beside the training", section["ratio"], ".2f")
    if section := results.get("start"):
        row("wrong job refused after, s", section["wrong_job_refused"], ".2f", AIMS["refused"])
        row("first step done after, s", section["first_step"], ".1f")
        row("  in the second attempt", section["first_step_of_second_attempt"], ".1f")
        for name, seconds in section["phases"].items():
            again = section["phases_of_second_attempt"].get(name)
            table.add_row(f"  {name}", f"{seconds:.1f}", f"again: {again:.1f}" if again is not None else "")
    if section := results.get("phases"):
        total = sum(section["seconds"].values())
        table.add_row("a whole run, seconds of one GPU or CPU", f"{total:.1f}", "", "")
        for name, seconds in section["seconds"].items():
            table.add_row(f"  {name}", f"{seconds:.1f}", f"{seconds / total:.0%}")
        table.add_row("  not training", f"{section['not_training']:.0%}", "", "")
    return table


if __name__ == "__main__":
    sys.exit(main())
