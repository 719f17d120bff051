"""``python -m bench.trainer``: compare the trainer with the bare library and with common scripts, on one machine."""

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

AIMS = {"overhead": "≤ 2 %", "script": "≥ 3", "loss": "≤ 2 %", "refused": "< 1 s"}
LARGE = Size(hidden=1024, layers=12, rows=6200)
"""What the time to the first step is taken of: 150 million weights, and all the texts there are."""
TINY = Size(64, 2, 350, 64, rows=40, overhead_steps=4, checkpoint_every=2, rounds=0, starts=1, compiled=False)
PARTS = ("overhead", "script", "start", "switches", "phases")


def main(words: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part; may be given more than once")
    parser.add_argument("--rounds", type=int, help="pairs of runs of each comparison")
    parser.add_argument("--tiny", action="store_true", help="a few steps of a model too small to say anything")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write the useful tokens per second as an SVG")
    parser.add_argument("--output", choices=["table", "json"], default="table")
    arguments = parser.parse_args(words)
    _quiet()
    size, large = (TINY, TINY) if arguments.tiny else (Size(), LARGE)
    if arguments.rounds:
        size = Size(**{**vars(size), "rounds": arguments.rounds})
    from bench.trainer.measure import measure  # after the environment is set: it imports torch

    with Console(stderr=True).status("") as status:
        found = {"machine": _machine()} | measure(size, large, tuple(arguments.only or PARTS), status.update)
    if arguments.picture and "script" in found:
        arguments.picture.write_text(picture(found["script"]), encoding="utf-8")
    if arguments.output == "json":
        print(json.dumps(found, indent=2))
    else:
        Console().print(table(found))
    return 0


def _quiet() -> None:
    """The libraries as the trainer has them, with one thread unless another number is asked for."""
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


def picture(part: dict[str, Any]) -> str:
    """What each trainer learns in a second."""
    rows = {
        "finetune-operator, packed": part["ours_tokens_per_second"],
        "script, padded": part["script_tokens_per_second"],
    }
    return bars("Useful (non-padding) tokens per second", rows)


def table(found: dict[str, Any]) -> Table:
    """All that was measured."""
    machine = found["machine"]
    shown = Table(title=f"{machine['cores']} cores, {found['threads']} thread, load {machine['load']:.1f} at the start")
    for column in ("", "median", "lowest and highest", "aim"):
        shown.add_column(column, justify="left" if not column else "right")

    def row(title: str, values: dict[str, float], style: str, aim: str = "") -> None:
        low, high = (format(values[key], style) for key in ("min", "max"))
        shown.add_row(title, format(values["median"], style), f"{low} … {high}", aim)

    if part := found.get("overhead"):
        shown.add_row(
            "our loop over TRL's, steps at their fastest", f"{part['undisturbed']:+.1%}", "", AIMS["overhead"]
        )
        row("  all of the time", part["wall"], "+.1%")
        row("  seconds of computing, all threads", part["cpu"], "+.1%")
        row("  seconds of our step", part["ours_seconds_per_step"], ".3f")
        shown.add_row("  same losses, bit for bit", "yes" if part["same_losses"] else "no", "", "yes")
    if part := found.get("script"):
        row("useful tokens/s, ours over the script", part["ratio"], ".2f", AIMS["script"])
        row("  the same for a second of computing", part["ratio_cpu"], ".2f")
        row("  ours", part["ours_tokens_per_second"], ",.0f")
        row("  script", part["script_tokens_per_second"], ",.0f")
        shown.add_row("  loss per token differs by at most", f"{part['loss_difference']:.1%}", "", AIMS["loss"])
    for name, values in found.get("switches", {}).items():
        row(f"useful tokens/s with {name} over without", values["ratio"], ".2f")
        row("  the same for a second of computing", values["ratio_cpu"], ".2f")
    if part := found.get("start"):
        row("wrong job refused after, s", part["wrong_job_refused"], ".2f", AIMS["refused"])
        row("first step done after, s", part["first_step"], ".1f")
        row("  in the second attempt", part["first_step_of_second_attempt"], ".1f")
        for name, seconds in part["phases"].items():
            again = part["phases_of_second_attempt"].get(name)
            shown.add_row(f"  {name}", f"{seconds:.1f}", f"again: {again:.1f}" if again is not None else "")
    if part := found.get("phases"):
        total = sum(part["seconds"].values())
        shown.add_row("a whole run, seconds of one GPU or CPU", f"{total:.1f}", "", "")
        for name, seconds in part["seconds"].items():
            shown.add_row(f"  {name}", f"{seconds:.1f}", f"{seconds / total:.0%}")
        shown.add_row("  not training", f"{part['not_training']:.0%}", "", "")
    return shown


if __name__ == "__main__":
    sys.exit(main())
