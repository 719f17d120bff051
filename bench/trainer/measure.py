"""Compare runs as ratios. The runs of a ratio take turns in one process, so that a busy machine slows both."""

import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.trainer import contenders
from bench.trainer.contenders import Course, Shape
from bench.trainer.data import BenchData, Size, make
from bench.trainer.startup import Start, Starts
from tools.testing.s3_server import S3Server, running_s3

WARM_UP = 2
"""Steps at the beginning that are not timed: memory is fetched for the first time there."""
MICRO_STEPS = 4
SCRIPT_BATCH, PACKED_ROWS = 8, 2
"""Rows of a step: 8 texts hold about as many tokens as 2 packed rows, so that both trainings learn as much per step."""
Told = Callable[[str], None]


def measure(size: Size, start: Size, parts: tuple[str, ...], told: Told) -> dict[str, Any]:
    """Run the parts. ``start`` is the larger model and dataset of which only the first step is waited for."""
    found: dict[str, Any] = {"threads": os.environ["OMP_NUM_THREADS"], "rounds": size.rounds}
    with tempfile.TemporaryDirectory() as temporary, running_s3(Path(temporary) / "s3") as server:
        directory = Path(temporary)
        told("making a model")
        data = make(directory / "small", size)
        if "overhead" in parts:
            found["overhead"] = _overhead(data, server, directory, told)
        if "script" in parts:
            found["script"] = _script(data, server, directory, told)
        if "switches" in parts:
            found["switches"] = _switches(data, server, directory, told)
        if {"start", "phases"} & set(parts):
            told("making a larger model")
            larger = make(directory / "large", start)
            if "start" in parts:
                found["start"] = _start(larger, server, directory, told)
            if "phases" in parts:
                told("a whole run")
                usage = Starts(larger, server, directory, "phases", steps=start.overhead_steps).whole()
                found["phases"] = {"seconds": usage.phases, "not_training": share_not_training(usage.phases)}
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def share_not_training(phases: dict[str, float]) -> float:
    """Return the share of the time of a run that is not training."""
    return 1 - phases.get("train", 0.0) / sum(phases.values())


def _overhead(data: BenchData, server: S3Server, directory: Path, told: Told) -> dict[str, Any]:
    """Our loop with checkpoints to S3, over the bare trainer of TRL with its checkpoints on the disk."""
    size = data.size
    shape = Shape(1, MICRO_STEPS, True, size.overhead_steps, size.checkpoint_every)
    pairs = _alternate(
        size.rounds,
        lambda: contenders.ours(data, server, directory, shape),
        lambda: contenders.bare(data, directory, shape),
        lambda number: told(f"our loop and TRL's, round {number}"),
    )
    steps = size.overhead_steps - WARM_UP
    return {
        "undisturbed": _undisturbed([a for a, _ in pairs]) / _undisturbed([b for _, b in pairs]) - 1,
        "wall": spread([a.seconds(WARM_UP) / b.seconds(WARM_UP) - 1 for a, b in pairs]),
        "cpu": spread([a.cpu_seconds(WARM_UP) / b.cpu_seconds(WARM_UP) - 1 for a, b in pairs]),
        "ours_seconds_per_step": spread([a.seconds(WARM_UP) / steps for a, _ in pairs]),
        "bare_seconds_per_step": spread([b.seconds(WARM_UP) / steps for _, b in pairs]),
        "same_losses": all(a.losses == b.losses for a, b in pairs),
        "checkpoints_every_seconds": size.checkpoint_every
        * statistics.median(a.seconds(WARM_UP) for a, _ in pairs)
        / steps,
    }


def _undisturbed(courses: list[Course]) -> float:
    """Return the seconds of all steps, each taken from its fastest round: other programs disturb different steps."""
    return sum(
        min(course.ends[step] - course.ends[step - 1] for course in courses)
        for step in range(WARM_UP, len(courses[0].ends))
    )


def _script(data: BenchData, server: S3Server, directory: Path, told: Told) -> dict[str, Any]:
    """Once through the rows, packed by us and padded by the script, with about as many tokens in a step."""
    size = data.size
    often = 10_000  # neither saves on the way: this is about the rows
    pairs = _alternate(
        size.rounds,
        lambda: contenders.ours(data, server, directory, Shape(1, PACKED_ROWS, True, None, often)),
        lambda: contenders.script(data, directory, Shape(SCRIPT_BATCH, 1, False, None, often)),
        lambda number: told(f"packed and padded, round {number}"),
    )
    ours, theirs = pairs[0]
    return {
        "ratio": spread([a.tokens_per_second(WARM_UP) / b.tokens_per_second(WARM_UP) for a, b in pairs]),
        "ratio_cpu": spread([a.tokens_per_cpu_second(WARM_UP) / b.tokens_per_cpu_second(WARM_UP) for a, b in pairs]),
        "ours_tokens_per_second": spread([a.tokens_per_second(WARM_UP) for a, _ in pairs]),
        "script_tokens_per_second": spread([b.tokens_per_second(WARM_UP) for _, b in pairs]),
        "tokens": [ours.tokens[-1], theirs.tokens[-1]],
        "steps": [len(ours.ends), len(theirs.ends)],
        "loss_difference": loss_difference(ours, theirs),
        "loss_at_end": [_late(ours), _late(theirs)],
    }


def loss_difference(some: Course, others: Course) -> float:
    """Return the largest relative difference between the mean losses per token of the four quarters of a training."""
    quarters = [(_quarter(some, number), _quarter(others, number)) for number in range(4)]
    return max(abs(a - b) / b for a, b in quarters)


def _quarter(course: Course, number: int) -> float:
    """Mean loss per token over a quarter of the training's tokens."""
    total = course.tokens[-1]
    steps = zip([0, *course.tokens], course.tokens, course.losses, strict=False)
    within = [
        (after - before, loss) for before, after, loss in steps if number * total < 4 * after <= (number + 1) * total
    ]
    if not within:
        raise ValueError("there are too few steps to compare quarters of the training")
    return sum(tokens * loss for tokens, loss in within) / sum(tokens for tokens, _ in within)


def _late(course: Course) -> float:
    return _quarter(course, 3)


def _switches(data: BenchData, server: S3Server, directory: Path, told: Told) -> dict[str, Any]:
    """Useful tokens per second with a switch over those without it, everything else alike."""
    rows = MICRO_STEPS
    whole = data.size.overhead_steps
    packed, padded = Shape(1, rows, True, whole, 10_000), Shape(rows, 1, False, whole, 10_000)
    compared: dict[str, tuple[Shape, dict[str, Any], Shape, dict[str, Any]]] = {
        "packing": (packed, {}, padded, {}),
        "gradientCheckpointing": (packed, {"gradientCheckpointing": "always"}, packed, {}),
    }
    if data.size.compiled:
        compared["compile"] = packed, {"compile": "always"}, packed, {"compile": "never"}
    found = {}
    for name, (shape, changed, other, unchanged) in compared.items():
        pairs = _alternate(
            data.size.rounds,
            partial(contenders.ours, data, server, directory, shape, **changed),
            partial(contenders.ours, data, server, directory, other, **unchanged),
            partial(_tell_round, told, name),
        )
        found[name] = {
            "ratio": spread([a.tokens_per_second(WARM_UP) / b.tokens_per_second(WARM_UP) for a, b in pairs]),
            "ratio_cpu": spread(
                [a.tokens_per_cpu_second(WARM_UP) / b.tokens_per_cpu_second(WARM_UP) for a, b in pairs]
            ),
        }
    return found


def _tell_round(told: Told, name: str, number: int) -> None:
    told(f"{name}, round {number}")


def _start(data: BenchData, server: S3Server, directory: Path, told: Told) -> dict[str, Any]:
    """Time new processes: a first attempt, a second one that reuses its tokens, and one with a wrong field."""
    firsts: list[Start] = []
    seconds: list[Start] = []
    refusals = []
    for number in range(data.size.starts):
        told(f"from the start to the first step, round {number + 1}")
        starts = Starts(data, server, directory, f"start-{number}")
        firsts.append(starts.attempt())
        seconds.append(starts.attempt())
        refusals.append(starts.refusal())
    return {
        "wrong_job_refused": spread(refusals),
        "first_step": spread([start.first_step for start in firsts]),
        "first_step_of_second_attempt": spread([start.first_step for start in seconds]),
        "phases": {name: statistics.median(start.phases[name] for start in firsts) for name in firsts[0].phases},
        "phases_of_second_attempt": {
            name: statistics.median(start.phases[name] for start in seconds) for name in seconds[0].phases
        },
    }


def _alternate(
    rounds: int, first: Callable[[], Course], second: Callable[[], Course], told: Callable[[int], None]
) -> list[tuple[Course, Course]]:
    """Pairs of runs, the other one first every other time, after a pair that is thrown away if there are others."""
    pairs = []
    for number in range(rounds + 1):
        told(number)
        if number % 2:
            a = first()
            b = second()
        else:
            b = second()
            a = first()
        pairs.append((a, b))
    return pairs[1:] or pairs
