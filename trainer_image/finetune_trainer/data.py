"""Rows become token sequences with labels, training rows and held-out rows apart; whatever is cut or left out is counted."""

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.finetunejob import DatasetSource
from finetune_api.reasons import Reason
from finetune_artifacts.digests import digest_of_file
from finetune_trainer import rows
from finetune_trainer.failures import Failure
from finetune_trainer.logs import log
from finetune_trainer.sources import Inputs

IGNORED = -100
"""Label of a token that the loss leaves out (torch.nn.CrossEntropyLoss's ignore_index)."""
SHORTEST_BLOCK = 8
"""A rest of plain text shorter than this is left out."""
DEFAULT_FRACTION, DEFAULT_HELD_OUT = 0.1, 200


@dataclass(frozen=True)
class Example:
    """One sequence: token ids, and for each the label that the loss expects of it (``IGNORED`` for none)."""

    input_ids: list[int]
    labels: list[int]

    @property
    def learned(self) -> int:
        """How many tokens the loss looks at; the first has nothing before it."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass
class Counts:
    """What was made of the rows."""

    rows: int = 0
    empty: int = 0
    truncated: int = 0
    dropped: int = 0
    whole_conversation: int = 0


@dataclass(frozen=True)
class Examples:
    """All sequences of a run. ``digests`` are those of the files that they came from."""

    train: list[Example]
    held_out: list[Example]
    layout: rows.Format
    counts: Counts
    digests: list[str]
    warnings: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens of the training sequences."""
        return sum(len(example.input_ids) for example in self.train)


def prepare(
    source: DatasetSource, inputs: Inputs, tokenizer: Any, max_length: int, seed: int, max_held_out: int
) -> Examples:
    """Read, check, tokenise and split the dataset. Raises Failure(DATASET_INVALID)."""
    with inputs.dataset.open("rb") as file:
        layout = rows.detect(file, source)
    if layout == "messages" and not tokenizer.chat_template:
        raise Failure(
            Reason.MODEL_UNSUPPORTED,
            "the dataset has chat messages, but the model's tokenizer has no chat template: take an instruct model, or format promptCompletion",
            "spec.dataset.format",
        )
    counts, warnings = Counts(), []
    examples = _read(inputs.dataset, source, source.uri, layout, tokenizer, max_length, counts)
    if source.max_samples is not None:
        examples = examples[: source.max_samples]
    if not examples:
        raise Failure(
            Reason.DATASET_INVALID,
            f"{source.uri} has no row that the loss can learn from ({_describe(counts, max_length)})",
            "spec.dataset.uri",
        )
    if inputs.validation is not None:
        held_out = _read(
            inputs.validation, source, "spec.dataset.validation.uri", layout, tokenizer, max_length, Counts()
        )[:max_held_out]
        train = examples
    else:
        train, held_out = split(examples, source.validation.fraction if source.validation else None, seed)
        held_out = held_out[:max_held_out]
    if not held_out:
        warnings.append("there is only one row: base and adapter are compared on the row that was trained on")
        held_out = train[:1]
    if counts.truncated or counts.dropped or counts.empty or counts.whole_conversation:
        warnings.append(_describe(counts, max_length))
    if layout != "plain text" and tokenizer.eos_token_id is None:
        warnings.append("the tokenizer has no end-of-text token: the model does not learn where an answer ends")
    log.info("data: %s, %d rows; %d sequences to train on, %d held out", layout, counts.rows, len(train), len(held_out))
    digests = [digest_of_file(path) for path in (inputs.dataset, inputs.validation) if path]
    return Examples(train, held_out, layout, counts, digests, warnings)


def split(examples: list[Example], fraction: float | None, seed: int) -> tuple[list[Example], list[Example]]:
    """Training and held-out sequences, drawn by ``seed``; at least one of each where there are two."""
    if len(examples) < 2:
        return examples, []
    wanted = (
        round(len(examples) * fraction) if fraction else min(round(len(examples) * DEFAULT_FRACTION), DEFAULT_HELD_OUT)
    )
    chosen = set(random.Random(seed).sample(range(len(examples)), min(max(wanted, 1), len(examples) - 1)))  # noqa: S311 -- a split, no secret
    return [e for i, e in enumerate(examples) if i not in chosen], [e for i, e in enumerate(examples) if i in chosen]


def _read(
    path: Path, source: DatasetSource, uri: str, layout: rows.Format, tokenizer: Any, max_length: int, counts: Counts
) -> list[Example]:
    if layout == "plain text":
        return _blocks(path, uri, tokenizer, max_length, counts)
    findings = rows.Findings()
    with path.open("rb") as file:
        good = list(rows.parse(file, layout, source.columns, findings))
    rows.refuse(findings, source, uri)
    counts.rows, counts.empty = findings.rows, findings.empty
    columns = source.columns
    if layout == "messages":
        made: Iterable[Example] = (_from_messages(row[columns.messages], tokenizer, counts) for row in good)
    elif layout == "promptCompletion":
        made = (_from_prompt(row[columns.prompt], row[columns.completion], tokenizer) for row in good)
    else:
        made = _from_texts([row[columns.text] for row in good], tokenizer)
    return list(_fit(made, max_length, counts))


def _blocks(path: Path, uri: str, tokenizer: Any, max_length: int, counts: Counts) -> list[Example]:
    """Plain text as one stream of tokens, cut into blocks of ``max_length``."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise Failure(
            Reason.DATASET_INVALID, f"{uri} is no UTF-8 text ({error.reason} at byte {error.start})", "spec.dataset.uri"
        ) from error
    start = [tokenizer.bos_token_id] if _adds_bos(tokenizer) else []
    stream = list(itertools.chain.from_iterable(_tokenize(tokenizer, _pieces(text), special=False)))
    length = max_length - len(start)
    blocks = [start + stream[at : at + length] for at in range(0, len(stream), length)]
    counts.rows = len(blocks)
    if len(blocks) > 1 and len(blocks[-1]) < SHORTEST_BLOCK:
        blocks.pop()
        counts.dropped += 1
    return [Example(block, list(block)) for block in blocks if len(block) > 1]


def _pieces(text: str, size: int = 65536) -> list[str]:
    """Text in pieces that end at a line's end, so that a tokenizer need not hold a whole book at once."""
    pieces, piece, length = [], [], 0
    for line in text.splitlines(keepends=True):
        piece.append(line)
        length += len(line)
        if length >= size:
            pieces.append("".join(piece))
            piece, length = [], 0
    return [*pieces, "".join(piece)] if piece else pieces


def _tokenize(tokenizer: Any, texts: list[str], *, special: bool = True) -> list[list[int]]:
    return list(tokenizer(texts, add_special_tokens=special)["input_ids"]) if texts else []


def _adds_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _with_end(ids: list[int], tokenizer: Any) -> list[int]:
    """The ids with an end-of-text token, so that the model learns to stop."""
    if tokenizer.eos_token_id is None or ids[-1:] == [tokenizer.eos_token_id]:
        return ids
    return [*ids, tokenizer.eos_token_id]


def _from_texts(texts: list[str], tokenizer: Any) -> Iterator[Example]:
    for ids in _tokenize(tokenizer, texts):
        whole = _with_end(ids, tokenizer)
        yield Example(whole, list(whole))


def _from_prompt(prompt: str, completion: str, tokenizer: Any) -> Example:
    """The loss looks at the completion only. Where tokens would merge across the border, the two are tokenised apart."""
    before = tokenizer(prompt)["input_ids"] if prompt else []
    whole = tokenizer(prompt + completion)["input_ids"]
    if whole[: len(before)] != before:
        whole = [*before, *tokenizer(completion, add_special_tokens=False)["input_ids"]]
    whole = _with_end(whole, tokenizer)
    return Example(whole, [IGNORED] * len(before) + whole[len(before) :])


def _from_messages(messages: list[dict[str, Any]], tokenizer: Any, counts: Counts) -> Example:
    """The loss looks at the assistant's turns only: at what the template adds after the prompt for them."""
    whole = _render(tokenizer, messages, generation_prompt=False)
    labels = [IGNORED] * len(whole)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(tokenizer, messages[:index], generation_prompt=True) if index else []
        after = _render(tokenizer, messages[: index + 1], generation_prompt=False)
        if whole[: len(before)] != before or whole[: len(after)] != after:
            # a template that renders a turn differently once others follow does not tell which tokens are whose
            counts.whole_conversation += 1
            return Example(whole, list(whole))
        labels[len(before) : len(after)] = whole[len(before) : len(after)]
    return Example(whole, labels)


def _render(tokenizer: Any, messages: list[dict[str, Any]], *, generation_prompt: bool) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _fit(examples: Iterable[Example], max_length: int, counts: Counts) -> Iterator[Example]:
    """Cut what is too long, and leave out what then has nothing to learn from."""
    for example in examples:
        fitted = example
        if len(example.input_ids) > max_length:
            counts.truncated += 1
            fitted = Example(example.input_ids[:max_length], example.labels[:max_length])
        if fitted.learned:
            yield fitted
        else:
            counts.dropped += 1


def _describe(counts: Counts, max_length: int) -> str:
    parts = [
        (counts.truncated, f"cut to maxLength {max_length}"),
        (counts.dropped, "left out because nothing was left to learn from"),
        (counts.empty, "left out because they are empty"),
        (counts.whole_conversation, "learned whole because the chat template does not tell the turns apart"),
    ]
    return f"of {counts.rows} rows: " + ", ".join(f"{number} {what}" for number, what in parts if number)
