"""Run ``finetune preview``: show what a training would learn of the first rows."""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.text import Text

from finetune_cli.errors import CliError
from finetune_cli.mounts import mount
from finetune_cli.run import Request, build_settings, read_request, require_trainer

if TYPE_CHECKING:
    from finetune_trainer.preflight.preview import Preview, PreviewedRow

PATIENCE_SECONDS = 45.0
"""How long requests to a service that does not answer are repeated."""
MARKS = ("⟦", "⟧")
"""Brackets around the learned parts if the output has no colours."""


def preview(request: Request, rows: int, output: Literal["text", "json"], environment: Mapping[str, str]) -> None:
    """Read and encode the first rows, and print them. Raises CliError with the reason if that fails."""
    job, mounted, content = read_request(request)
    require_trainer()
    from finetune_artifacts.errors import ArtifactError
    from finetune_trainer.runtime.failures import Failure
    from finetune_trainer.runtime.libraries import library_environment

    os.environ.update(library_environment(environment))
    from finetune_trainer.preflight.preview import make_preview

    with tempfile.TemporaryDirectory(prefix="finetune-preview-") as name:
        work = Path(name)
        mount(work / "mounts", mounted, content)
        settings = build_settings(job, None, request.changes, work, environment)
        try:
            preview = make_preview(settings, rows, PATIENCE_SECONDS)
        except Failure as error:
            field_prefix = f"{error.field}: " if error.field else ""
            raise CliError(f"{error.reason}: {field_prefix}{error.message}") from error
        except ArtifactError as error:
            raise CliError(f"{error.reason}: {error.message}") from error
    if output == "json":
        sys.stdout.write(json.dumps(to_json(preview), ensure_ascii=False, indent=2) + "\n")
    else:
        show(preview, Console(highlight=False))


def to_json(preview: "Preview") -> dict[str, object]:
    """Return the preview with the names of docs/datasets.md."""
    return {
        "layout": preview.layout,
        "columns": preview.columns,
        "unusedColumns": preview.unused_columns,
        "warnings": preview.warnings,
        "rows": [
            {
                "location": row.location,
                "problem": row.problem or None,
                "tokens": row.tokens,
                "learnedTokens": row.learned_tokens,
                "cutTokens": row.cut_tokens,
                "sequences": {name: [asdict(part) for part in parts] for name, parts in row.sequences.items()},
            }
            for row in preview.rows
        ],
    }


def show(preview: "Preview", console: Console) -> None:
    """Print the rows, their learned parts in green or, in a pipe, between marks."""
    style = "green" if console.is_terminal and not console.no_color else f"between {MARKS[0]} and {MARKS[1]}"
    columns = f"; columns {', '.join(preview.columns)}" if preview.columns else ""
    unused = f"; not used: {', '.join(preview.unused_columns)}" if preview.unused_columns else ""
    console.print(
        Text(f"The dataset is read as {preview.layout}{columns}{unused}. The learned parts are {style}."),
        soft_wrap=True,
    )
    for row in preview.rows:
        console.print(Text(f"\n{row.location}: {describe(row)}", style="bold"), soft_wrap=True)
        for name, parts in row.sequences.items():
            text = Text(f"{name}: " if len(row.sequences) > 1 else "")
            for part in parts:
                marks = MARKS if part.learned and style != "green" else ("", "")
                text.append(f"{marks[0]}{part.text}{marks[1]}", style="green" if part.learned else "dim")
            console.print(text, soft_wrap=True)
    for warning in preview.warnings:
        console.print(Text(f"\nWarning: {warning}", style="yellow"), soft_wrap=True)


def describe(row: "PreviewedRow") -> str:
    """Describe a row in one line: why it is not used, or its tokens."""
    if row.problem:
        return row.problem
    cut = f", {row.cut_tokens} more are cut off" if row.cut_tokens else ""
    return f"{row.tokens} tokens, {row.learned_tokens} of them learned{cut}"
