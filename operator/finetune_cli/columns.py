"""Format tables and sentences for a terminal or a pipe. An address is never broken into two lines."""

import shutil
import sys
import textwrap


def format_table(headers: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table with left-aligned columns, as kubectl prints them."""
    cells = [headers, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return [line.rstrip() for line in lines]


def fit(text: str, indent: int) -> list[str]:
    """Return a text as indented lines: broken between words on a terminal, and never in a pipe."""
    margin = " " * indent
    if not sys.stdout.isatty():
        return [margin + " ".join(text.split())]
    width = max(shutil.get_terminal_size().columns, 40)
    return textwrap.wrap(
        text,
        width,
        initial_indent=margin,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    )
