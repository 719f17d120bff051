"""The files of tests/api/corpus: wrong and right ones, as people write them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune_cli.yaml_reader import read_yaml, resolve
from tests.api.objects import REMOVE, changed

CORPUS = Path(__file__).parent / "corpus"
MESSAGES = CORPUS / "messages.txt"


@dataclass(frozen=True)
class CorpusFile:
    """A file, and whether it is right."""

    name: str
    content: bytes
    right: bool

    @property
    def plural(self) -> str:
        """Resource of the API to which the file is sent."""
        return "adapterdeployments" if b"AdapterDeployment" in self.content.replace(b"\0", b"") else "finetunejobs"


def load(name: str) -> list[CorpusFile]:
    """Return the files of good.yaml or bad.yaml."""
    cases = yaml.safe_load((CORPUS / f"{name}.yaml").read_text())
    return [CorpusFile(str(case["name"]), content(case), name == "good") for case in cases]


def content(case: dict[str, Any]) -> bytes:
    """Return the bytes of a case's file."""
    if "text" in case:
        return str(case["text"]).encode()
    text = (CORPUS / f"{case.get('of', 'job')}.yaml").read_text()
    for old, new in case.get("edit", {}).items():
        assert old in text, f"{case['name']}: {old!r} is not in the file"
        text = text.replace(old, new, 1)
    if changes := case.get("set"):
        removed = {path: REMOVE if value is None else value for path, value in changes.items()}
        text = yaml.dump(changed(parse(text), removed), Dumper=GoDumper, sort_keys=False)
    if case.get("json"):
        text = json.dumps(parse(text), indent="\t")
    if case.get("crlf"):
        text = text.replace("\n", "\r\n")
    return text.encode("utf-16" if case.get("utf16") else "utf-8-sig" if case.get("bom") else "utf-8")


def parse(text: str) -> Any:
    """Return the one document of a text."""
    (document,) = read_yaml(text.encode())
    return document.value


class GoDumper(yaml.SafeDumper):
    """Writes in quotes what Go's YAML would not read as a text."""


def represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if isinstance(resolve(text), str) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


GoDumper.add_representer(str, represent_text)
GOOD, BAD = load("good"), load("bad")
