"""Tokenize rows, with a label for each token that the loss uses, and count what is cut or dropped."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, TypeVar

import jinja2

from finetune_api.data_counts import LENGTHS, Counts
from finetune_api.reasons import Reason
from finetune_trainer.data import alpaca
from finetune_trainer.data.columns import Layout
from finetune_trainer.data.values import Message, Row
from finetune_trainer.runtime.failures import Failure

IGNORED = -100
"""Label of a token that the loss ignores (torch.nn.CrossEntropyLoss's ignore_index)."""
MIN_BLOCK_TOKENS = 8
"""The last block of plain text is dropped if it is shorter."""
TOKENIZER_BATCH = 64
"""How many rows the tokenizer gets at once; it processes them in parallel."""
END_WINDOW = 4
"""An end-of-text token within this many last tokens counts as the end, because templates add a newline to it."""
TokenizedRow = dict[str, Any]
"""Columns of TRL: input_ids and labels, or prompt_ids and the ids of each answer."""
TokenIds = list[int]
T = TypeVar("T")


@dataclass(frozen=True)
class _PendingRow:
    """Hold the texts of a row that are to be tokenized, and how their tokens become a sequence."""

    texts: list[str]
    special: bool
    finish: Callable[[list[TokenIds]], TokenizedRow]


class Encoder:
    """Tokenize rows into sequences of at most ``max_length`` tokens."""

    def __init__(self, tokenizer: Any, layout: Layout, max_length: int, counts: Counts) -> None:
        """Create an encoder for one dataset.

        Args:
            tokenizer: The model's tokenizer.
            layout: What the rows are.
            max_length: The most tokens in a sequence.
            counts: Updated with what happens to each row.
        """
        self._tokenizer, self._layout, self._max_length, self._counts = tokenizer, layout, max_length, counts
        self._end = tokenizer.eos_token_id

    def encode(self, rows: Iterable[Row]) -> Iterator[tuple[Row, TokenizedRow]]:
        """Tokenize rows in their order, without those that the loss cannot learn from."""
        for some in batched(rows, TOKENIZER_BATCH):
            work = [self._prepare(row) for row in some]
            tokens = {
                special: self._tokenize([t for w in work if w.special is special for t in w.texts], special)
                for special in (True, False)
            }
            for row, one in zip(some, work, strict=True):
                source = tokens[one.special]
                whole = one.finish([next(source) for _ in one.texts])
                if fitted := self._fit(whole):
                    yield row, fitted

    def encode_text(self, pieces: Iterable[str]) -> Iterator[TokenizedRow]:
        """Tokenize plain text as one stream, and cut it into blocks of ``max_length`` tokens."""
        start = [self._tokenizer.bos_token_id] if self._adds_bos() else []
        length = self._max_length - len(start)
        held: TokenIds = []
        for some in batched(pieces, 4):
            held += chain.from_iterable(self._tokenize(list(some), special=False))
            whole = len(held) - len(held) % length
            # hold the last block back: if it stays the last one, it may be too short to learn from
            whole -= length if whole == len(held) and whole else 0
            for at in range(0, whole, length):
                yield self._block(start + held[at : at + length])
            held = held[whole:]
        if len(held) >= MIN_BLOCK_TOKENS or (self._counts.rows == 0 and len(start) + len(held) > 1):
            yield self._block(start + held)
        elif held:
            self._counts.rows += 1
            self._counts.dropped += 1

    def _block(self, ids: TokenIds) -> TokenizedRow:
        self._counts.rows += 1
        self._count_length(len(ids))
        return {"input_ids": ids, "labels": ids}

    def _tokenize(self, texts: list[str], special: bool) -> Iterator[TokenIds]:
        return iter(self._tokenizer(texts, add_special_tokens=special)["input_ids"] if texts else [])

    def _adds_bos(self) -> bool:
        bos = self._tokenizer.bos_token_id
        return bos is not None and self._tokenizer("a")["input_ids"][:1] == [bos]

    def _prepare(self, row: Row) -> _PendingRow:
        match self._layout:
            case "messages":
                return self._prepare_chat(row["messages"], row.get("tools"))
            case "instruction" if self._tokenizer.chat_template:
                return self._prepare_chat(alpaca.to_messages(row), None)
            case "instruction":
                return self._prepare_answers(alpaca.to_prompt(row), {"completion": row["output"]}, {})
            case "promptCompletion":
                extra = {"label": row["label"]} if "label" in row else {}
                return self._prepare_answers(row["prompt"], {"completion": row["completion"]}, extra)
            case "preference":
                return self._prepare_answers(row["prompt"], {"chosen": row["chosen"], "rejected": row["rejected"]}, {})
        return _PendingRow([row["text"]], True, lambda ids: self._learn_all(self._add_end(ids[0])))

    def _prepare_answers(self, prompt: Any, answers: dict[str, Any], extra: dict[str, Any]) -> _PendingRow:
        """Prepare a prompt, which is not learned, and each answer to it."""
        chat = any(isinstance(answer, list) for answer in answers.values())
        if chat:
            texts = [self._render(prompt, None, generation_prompt=True) if prompt else ""]
            texts += [self._render(prompt + answer, None, generation_prompt=False) for answer in answers.values()]
        else:
            texts = [prompt, *(prompt + answer for answer in answers.values())]

        def finish(ids: list[TokenIds]) -> TokenizedRow:
            before = ids[0] if texts[0] else []
            if chat:
                # a template may end a prompt without an answer differently: the answer starts where they differ
                before = before[: min(_common_prefix_length(before, whole) for whole in ids[1:])]
            after: dict[str, TokenIds] = {}
            for name, text, whole in zip(answers, texts[1:], ids[1:], strict=True):
                rest = whole[len(before) :]
                if whole[: len(before)] != before:
                    # a token would span prompt and answer: tokenize the answer alone
                    rest = next(self._tokenize([text.removeprefix(texts[0])], special=False))
                after[name] = rest if chat else self._add_end(rest)
            if "completion" in after and "label" not in extra:
                ids_of = before + after["completion"]
                return {"input_ids": ids_of, "labels": [IGNORED] * len(before) + after["completion"]}
            return {"prompt_ids": before, **{f"{name}_ids": found for name, found in after.items()}, **extra}

        return _PendingRow(texts, not chat, finish)

    def _prepare_chat(self, messages: list[Message], tools: list[Any] | None) -> _PendingRow:
        """Prepare a chat, of which only the assistant's turns are learned.

        These are the tokens that the chat template adds to the prompt of each such turn.
        """
        turns = [n for n, turn in enumerate(messages) if turn["role"] == "assistant" and turn.get("train", True)]
        texts = [self._render(messages, tools, generation_prompt=False)]
        for index in turns:
            texts.append(self._render(messages[:index], tools, generation_prompt=True) if index else "")
            texts.append(self._render(messages[: index + 1], tools, generation_prompt=False))

        def finish(ids: list[TokenIds]) -> TokenizedRow:
            whole = ids[0]
            labels = [IGNORED] * len(whole)
            for before, after in zip(ids[1::2], ids[2::2], strict=True):
                if whole[: len(before)] != before or whole[: len(after)] != after:
                    # the template renders this turn differently if others follow: its tokens are not known
                    self._counts.whole_conversation += 1
                    return self._learn_all(whole)
                labels[len(before) : len(after)] = whole[len(before) : len(after)]
            return {"input_ids": whole, "labels": labels}

        return _PendingRow(texts, False, finish)

    def _render(self, messages: list[Message], tools: list[Any] | None, *, generation_prompt: bool) -> str:
        if not self._tokenizer.chat_template:
            raise missing_chat_template()
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tools=tools, tokenize=False, add_generation_prompt=generation_prompt
                )
            )
        except (jinja2.TemplateError, TypeError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise Failure(
                Reason.DATASET_INVALID,
                f"the model's chat template refuses a chat of the roles {roles} ({error}), which begins with "
                f"{messages[0]['content'][:60]!r}: change such rows, or make texts of them with spec.dataset.template",
                "spec.dataset.uri",
            ) from error

    def _learn_all(self, ids: TokenIds) -> TokenizedRow:
        return {"input_ids": ids, "labels": list(ids)}

    def _add_end(self, ids: TokenIds) -> TokenIds:
        """Append the end-of-text token if it is missing, so that the model learns to stop."""
        return ids if self._end is None or ids[-1:] == [self._end] else [*ids, self._end]

    def _fit(self, whole: TokenizedRow) -> TokenizedRow | None:
        """Cut a sequence that is too long; return None if nothing to learn is left."""
        if "input_ids" in whole:
            longest, ends = (
                len(whole["input_ids"]),
                [[label for label in whole["labels"][-END_WINDOW:] if label != IGNORED]],
            )
            fitted = {name: ids[: self._max_length] for name, ids in whole.items()}
            learns = any(label != IGNORED for label in fitted["labels"][1:])
        else:
            before = len(whole["prompt_ids"])
            answers = [name for name in whole if name.endswith("_ids") and name != "prompt_ids"]
            longest = before + max(len(whole[name]) for name in answers)
            ends = [whole[name][-END_WINDOW:] for name in answers]
            room = max(self._max_length - before, 0)
            fitted = whole | {name: whole[name][:room] for name in answers}
            learns = all(fitted[name] and before + len(fitted[name]) > 1 for name in answers)
            learns = learns and (len(answers) == 1 or fitted[answers[0]] != fitted[answers[1]])
        self._count_length(longest)
        cut = longest > self._max_length
        self._counts.truncated += cut
        self._counts.cut_tokens += max(longest - self._max_length, 0)
        if not learns:
            self._counts.dropped += 1
            return None
        self._counts.without_end += not cut and self._end is not None and not all(self._end in end for end in ends)
        return fitted

    def _count_length(self, length: int) -> None:
        counts = self._counts
        bucket = next((number for number, end in enumerate(LENGTHS) if length <= end), len(LENGTHS))
        counts.lengths[bucket] += 1
        counts.longest = max(counts.longest, length)


def missing_chat_template() -> Failure:
    """Return the Failure for chats if the model's tokenizer has no chat template."""
    return Failure(
        Reason.MODEL_UNSUPPORTED,
        "the dataset has chat messages, but the model's tokenizer has no chat template: choose an instruct model, "
        "give prompts and completions as texts, or make texts of the messages with spec.dataset.template",
        "spec.dataset.format",
    )


def _common_prefix_length(some: TokenIds, others: TokenIds) -> int:
    """Count the tokens that two sequences share at their start."""
    return next((n for n, (a, b) in enumerate(zip(some, others, strict=False)) if a != b), min(len(some), len(others)))


def batched(things: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` items, the last one shorter (itertools.batched, which Python 3.11 lacks)."""
    iterator = iter(things)
    while some := list(islice(iterator, size)):
        yield some
