"""Compare trainings as ratios. The two trainings take turns in one process, so that a busy machine slows both."""

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
"""Number of first steps that are not timed, because they allocate memory."""
MICRO_STEPS = 4
SCRIPT_BATCH, PACKED_ROWS = 8, 2
"""Rows per step: 8 texts have about as many tokens as 2 packed rows, so a step learns equally much in both."""
NO_CHECKPOINTS = 10_000
"""Steps between checkpoints, more than any training here has."""
Progress = Callable[[str], None]


def measure(size: Size, start: Size, checkpointed: Size, parts: tuple[str, ...], progress: Progress) -> dict[str, Any]:
    """Run the given parts of the benchmark.

    Args:
        size: Model and dataset of most parts.
        start: A larger model and dataset, to measure the time to the first step.
        checkpointed: A model whose whole state is saved.
        parts: Names of the parts to run.
        progress: Receives a line for each thing that begins.
    """
    results: dict[str, Any] = {"threads": os.environ["OMP_NUM_THREADS"], "rounds": size.rounds}
    with tempfile.TemporaryDirectory() as temporary, running_s3(Path(temporary) / "s3") as server:
        directory = Path(temporary)
        progress("making a model")
        data = make(directory / "small", size)
        if "overhead" in parts:
            results["overhead"] = _overhead(data, server, directory, progress)
        if "script" in parts:
            results["script"] = _script(data, server, directory, progress)
        if "switches" in parts:
            results["switches"] = _switches(data, server, directory, progress)
        if "checkpoints" in parts:
            progress("making a model whose checkpoints are large")
            results["checkpoints"] = _checkpoints(make(directory / "whole", checkpointed), server, directory, progress)
        if {"start", "phases"} & set(parts):
            progress("making a larger model")
            larger = make(directory / "large", start)
            if "start" in parts:
                results["start"] = _start(larger, server, directory, progress)
            if "phases" in parts:
                progress("a whole run")
                usage = Starts(larger, server, directory, "phases", steps=start.overhead_steps).run_to_end()
                results["phases"] = {"seconds": usage.phases, "not_training": share_not_training(usage.phases)}
    return results


def spread(values: list[float]) -> dict[str, float]:
    """Return median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def share_not_training(phases: dict[str, float]) -> float:
    """Return the share of a run's time that is not training."""
    return 1 - phases.get("train", 0.0) / sum(phases.values())


def _overhead(data: BenchData, server: S3Server, directory: Path, progress: Progress) -> dict[str, Any]:
    """Compare the time of our trainer (checkpoints in S3) with that of TRL's (checkpoints on the disk)."""
    size = data.size
    shape = Shape(1, MICRO_STEPS, True, size.overhead_steps, size.checkpoint_every)
    pairs = _alternate(
        size.rounds,
        lambda: contenders.ours(data, server, directory, shape),
        lambda: contenders.bare(data, directory, shape),
        lambda number: progress(f"our loop and TRL's, round {number}"),
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
    """Return the sum of each step's fastest time over all rounds.

    Other programs disturb different steps of each round.
    """
    return sum(
        min(course.ends[step] - course.ends[step - 1] for course in courses)
        for step in range(WARM_UP, len(courses[0].ends))
    )


def _script(data: BenchData, server: S3Server, directory: Path, progress: Progress) -> dict[str, Any]:
    """Compare one epoch with packed rows (ours) with one with padded rows (the script)."""
    size = data.size
    pairs = _alternate(
        size.rounds,
        lambda: contenders.ours(data, server, directory, Shape(1, PACKED_ROWS, True, None, NO_CHECKPOINTS)),
        lambda: contenders.script(data, directory, Shape(SCRIPT_BATCH, 1, False, None, NO_CHECKPOINTS)),
        lambda number: progress(f"packed and padded, round {number}"),
    )
    our_course, script_course = pairs[0]
    return {
        "ratio": spread([a.tokens_per_second(WARM_UP) / b.tokens_per_second(WARM_UP) for a, b in pairs]),
        "ratio_cpu": spread([a.tokens_per_cpu_second(WARM_UP) / b.tokens_per_cpu_second(WARM_UP) for a, b in pairs]),
        "ours_tokens_per_second": spread([a.tokens_per_second(WARM_UP) for a, _ in pairs]),
        "script_tokens_per_second": spread([b.tokens_per_second(WARM_UP) for _, b in pairs]),
        "tokens": [our_course.tokens[-1], script_course.tokens[-1]],
        "steps": [len(our_course.ends), len(script_course.ends)],
        "loss_difference": loss_difference(our_course, script_course),
        "loss_at_end": [_late_loss(our_course), _late_loss(script_course)],
    }


def loss_difference(ours: Course, theirs: Course) -> float:
    """Return the largest relative difference of two trainings' mean losses per token, over four quarters."""
    quarters = [(_quarter(ours, number), _quarter(theirs, number)) for number in range(4)]
    return max(abs(a - b) / b for a, b in quarters)


def _quarter(course: Course, number: int) -> float:
    """Return the mean loss per token over a quarter of the training's tokens."""
    total = course.tokens[-1]
    steps = zip([0, *course.tokens], course.tokens, course.losses, strict=False)
    within = [
        (after - before, loss) for before, after, loss in steps if number * total < 4 * after <= (number + 1) * total
    ]
    if not within:
        raise ValueError("there are too few steps to compare quarters of the training")
    return sum(tokens * loss for tokens, loss in within) / sum(tokens for tokens, _ in within)


def _late_loss(course: Course) -> float:
    """Return the mean loss per token over the last quarter of the training's tokens."""
    return _quarter(course, 3)


def _switches(data: BenchData, server: S3Server, directory: Path, progress: Progress) -> dict[str, Any]:
    """Return the ratio of useful tokens per second with each performance option to those without it."""
    rows = MICRO_STEPS
    steps = data.size.overhead_steps
    packed, padded = Shape(1, rows, True, steps, NO_CHECKPOINTS), Shape(rows, 1, False, steps, NO_CHECKPOINTS)
    compared: dict[str, tuple[Shape, dict[str, Any], Shape, dict[str, Any]]] = {
        "packing": (packed, {}, padded, {}),
        "gradientCheckpointing": (packed, {"gradientCheckpointing": "always"}, packed, {}),
    }
    if data.size.compiled:
        compared["compile"] = packed, {"compile": "always"}, packed, {"compile": "never"}
    results = {}
    wide = Shape(rows, 1, True, steps, NO_CHECKPOINTS)
    pairs = _alternate(
        data.size.rounds,
        lambda: contenders.ours(data, server, directory, wide),
        lambda: contenders.masked(data, server, directory, wide),
        partial(_show_round, progress, "packed attention"),
    )
    results["attention to packed examples one by one"] = _compare_speed(pairs)
    for name, (shape, changed_options, other_shape, other_options) in compared.items():
        pairs = _alternate(
            data.size.rounds,
            partial(contenders.ours, data, server, directory, shape, **changed_options),
            partial(contenders.ours, data, server, directory, other_shape, **other_options),
            partial(_show_round, progress, name),
        )
        results[name] = _compare_speed(pairs)
    return results


def _compare_speed(pairs: list[tuple[Course, Course]]) -> dict[str, Any]:
    return {
        "ratio": spread([a.tokens_per_second(WARM_UP) / b.tokens_per_second(WARM_UP) for a, b in pairs]),
        "ratio_cpu": spread([a.tokens_per_cpu_second(WARM_UP) / b.tokens_per_cpu_second(WARM_UP) for a, b in pairs]),
    }


def _show_round(progress: Progress, name: str, number: int) -> None:
    progress(f"{name}, round {number}")


def _checkpoints(data: BenchData, server: S3Server, directory: Path, progress: Progress) -> dict[str, Any]:
    """Compare full fine-tuning with checkpoints written beside the training with one that waits for the disk."""
    shape = Shape(1, 1, True, data.size.overhead_steps, data.size.checkpoint_every)
    method: dict[str, Any] = {"full": {}}
    pairs = _alternate(
        data.size.rounds,
        lambda: contenders.ours(data, server, directory, shape, method),
        lambda: contenders.waiting_for_the_disk(data, server, directory, shape, method),
        lambda number: progress(f"checkpoints beside the training, round {number}"),
    )
    return {"ratio": spread([b.seconds(WARM_UP) / a.seconds(WARM_UP) for a, b in pairs])}


def _start(data: BenchData, server: S3Server, directory: Path, progress: Progress) -> dict[str, Any]:
    """Time new processes: a first attempt, a second one that reuses the tokens, and one with an invalid job."""
    first_starts: list[Start] = []
    second_starts: list[Start] = []
    refusals = []
    for number in range(data.size.starts):
        progress(f"from the start to the first step, round {number + 1}")
        starts = Starts(data, server, directory, f"start-{number}")
        first_starts.append(starts.attempt())
        second_starts.append(starts.attempt())
        refusals.append(starts.refusal())
    return {
        "wrong_job_refused": spread(refusals),
        "first_step": spread([start.first_step for start in first_starts]),
        "first_step_of_second_attempt": spread([start.first_step for start in second_starts]),
        "phases": {
            name: statistics.median(start.phases[name] for start in first_starts) for name in first_starts[0].phases
        },
        "phases_of_second_attempt": {
            name: statistics.median(start.phases[name] for start in second_starts) for name in second_starts[0].phases
        },
    }


def _alternate(
    rounds: int, first: Callable[[], Course], second: Callable[[], Course], progress: Callable[[int], None]
) -> list[tuple[Course, Course]]:
    """Run both functions in turns, and return the pairs of results.

    The order changes from pair to pair. With more than one pair the first is a warm-up and is thrown away.
    """
    pairs = []
    for number in range(rounds + 1):
        progress(number)
        if number % 2:
            a = first()
            b = second()
        else:
            b = second()
            a = first()
        pairs.append((a, b))
    return pairs[1:] or pairs
