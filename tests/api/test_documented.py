"""The hand-written pages describe everything that exists, and nothing else."""

import re
from pathlib import Path
from typing import Any, get_args

from finetune_api.methods import Block, Method
from finetune_api.reasons import Reason
from finetune_operator.settings import PREFIX, Settings

TROUBLESHOOTING = Path("docs/troubleshooting.md").read_text()
METHODS = Path("docs/methods.md").read_text()
INSTALL = Path("docs/install.md").read_text()


def test_every_reason_has_a_section_and_no_section_an_unknown_reason() -> None:
    sections = re.findall(r"^### (\w+)$", TROUBLESHOOTING, re.MULTILINE)
    assert sorted(sections) == sorted(Reason)


def test_no_section_is_empty() -> None:
    for section in re.split(r"^### ", TROUBLESHOOTING, flags=re.MULTILINE)[1:]:
        assert len(section.split()) > 5


def test_every_setting_that_an_administrator_can_choose_is_in_the_table() -> None:
    documented = set(re.findall(rf"`{PREFIX}(\w+)`", INSTALL))
    fixed_by_the_chart = {"KUBECONFIG", "LISTEN_HOST", "LISTEN_PORT"}
    assert documented == {field.upper() for field in Settings.__dataclass_fields__} - fixed_by_the_chart


def test_every_method_has_its_default_learning_rate_in_the_table() -> None:
    table = METHODS.split("## Which modules")[0]
    rates = dict(re.findall(r"^\| `(\w+)` \| [^|]* \| ([\de.-]+) \|", table, re.MULTILINE))
    fields = {str(field.alias): models_of_field(field.annotation) for field in Method.model_fields.values()}
    assert {name: float(rate) for name, rate in rates.items()} == {
        name: block.default_learning_rate for name, block in fields.items()
    }
    sources = METHODS.split("## Where the defaults come from")[1].split("## What is published")[0]
    assert [name for name in fields if f"`{name}`" not in sources] == []


def models_of_field(annotation: Any) -> type[Block]:
    """Return the block that a field of ``Method`` may hold."""
    block: type[Block]
    (block,) = [part for part in get_args(annotation) if part is not type(None)]
    assert issubclass(block, Block)
    return block
