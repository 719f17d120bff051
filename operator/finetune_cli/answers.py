"""Print the answers of a base model and its adapter side by side."""

from rich.console import Console
from rich.table import Table


def print_answers(rows: list[dict[str, str]], base: str, adapter: str) -> None:
    """Print a table of prompts with the answers of base and adapter side by side."""
    table = Table(show_lines=True)
    for header, ratio in (("prompt", 1), (f"{base} (base)", 2), (f"{adapter} (adapter)", 2)):
        table.add_column(header, ratio=ratio)
    for row in rows:
        table.add_row(row["prompt"], row["base"], row["adapter"])
    Console(highlight=False, markup=False).print(table)
