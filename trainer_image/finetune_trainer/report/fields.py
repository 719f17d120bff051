"""Build the values that the reports of finished and failed runs share, without torch."""

import itertools

from finetune_api.data_counts import LENGTHS, Counts
from finetune_trainer.data.rows import describe_layout
from finetune_trainer.report.contents import Attempt, Bar, DataShape, PhaseUsage
from finetune_trainer.runtime.effective_settings import Setting, list_effective_settings
from finetune_trainer.runtime.phase_clock import CLOCK
from finetune_trainer.runtime.settings import Settings
from finetune_trainer.session.run import Run


def list_settings(settings: Settings, run: Run) -> list[Setting]:
    """List every setting: those of the spec, and the values that followed from them in the run."""
    return [
        *list_effective_settings(settings.job.spec, settings.changes, settings.adjustments, settings.choice),
        *(Setting(*item, "the run") for item in run.derived_settings.items()),
    ]


def list_attempts(run: Run) -> list[Attempt]:
    """List the attempts; earlier ones only if the checkpoint lists them."""
    return [
        Attempt(item["number"], item["startedAt"], item["resumedFromStep"], item["device"], item.get("adjustments", []))
        for item in run.attempts
    ]


def describe_usage(settings: Settings) -> list[PhaseUsage]:
    """Return the time that this attempt has spent in each phase so far; empty if nothing was measured."""
    gpus = settings.job.spec.resources.gpus_per_node
    phases = CLOCK.measure_usage(gpus).phases
    total = sum(phases.values()) or 1.0
    return [PhaseUsage(name, seconds, 100 * seconds / total) for name, seconds in phases.items()]


def describe_shape(counts: Counts) -> DataShape:
    """Describe the data: counts, and the lengths of its sequences."""
    left_out = counts.dropped + counts.empty
    fields = [
        ("Read as", describe_layout(counts.layout, counts.columns, counts.unused_columns)),
        ("Rows", f"{counts.rows:,}"),
        ("Training sequences", f"{counts.sequences:,}"),
        ("Held-out sequences", f"{counts.held_out:,}"),
        ("Training tokens", f"{counts.tokens:,}"),
        ("Learned tokens", f"{counts.learned_tokens:,}"),
        ("Mean length", f"{counts.tokens / max(counts.sequences, 1):.1f}"),
        ("Longest row", f"{counts.longest:,}"),
        ("Cut to maxLength", f"{counts.truncated:,} ({counts.cut_tokens:,} tokens)" if counts.truncated else "0"),
        ("Left out", f"{left_out:,}"),
        ("Duplicates", f"{counts.duplicates:,}"),
        ("Held-out rows also trained on", f"{counts.leaked:,}"),
        ("Without end of text", f"{counts.without_end:,}"),
    ]
    names = [f"{low + 1}–{high}" for low, high in itertools.pairwise([0, *LENGTHS])] + [f"over {LENGTHS[-1]}"]
    bars = [Bar(name, number) for name, number in zip(names, counts.lengths, strict=True)]
    filled = [index for index, bar in enumerate(bars) if bar.count]
    return DataShape(fields, bars[filled[0] : filled[-1] + 1] if filled else [])
