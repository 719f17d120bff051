"""Rows made into token sequences, with a label for each token that the loss looks at; whatever is cut or left out is counted."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, TypeVar

import jinja2

from finetune_api.data_counts import LENGTHS, Counts
from finetune_api.reasons import Reason
from finetune_trainer.data.rows import Layout, Message, Row
from finetune_trainer.runtime.failures import Failure

IGNORED = -100
"""Label of a token that the loss leaves out (torch.nn.CrossEntropyLoss's ignore_index)."""
SHORTEST_BLOCK = 8
"""A rest of plain text shorter than this is left out."""
TOGETHER = 64
"""So many rows are given to the tokenizer at once, which works on them side by side."""
END_WITHIN = 4
"""An end-of-text token among so many last ones counts as the end: templates add a line's end to it."""
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
"""The prompts of Stanford's Alpaca, for models that have no chat template of their own."""
Sequence = dict[str, Any]
"""Columns as TRL takes them: input_ids and labels, or prompt_ids and an answer's ids."""
Ids = list[int]
T = TypeVar("T")


@dataclass(frozen=True)
class _Work:
    """The texts of one row that are to be tokenised, and what makes a sequence of their tokens."""

    texts: list[str]
    special: bool
    finish: Callable[[list[Ids]], Sequence]


class Encoder:
    """Makes sequences of at most ``max_length`` tokens. ``counts`` takes down what was made of the rows."""

    def __init__(self, tokenizer: Any, layout: Layout, max_length: int, counts: Counts) -> None:
        self._tokenizer, self._layout, self._max_length, self._counts = tokenizer, layout, max_length, counts
        self._end = tokenizer.eos_token_id

    def encode(self, rows: Iterable[Row]) -> Iterator[tuple[Row, Sequence]]:
        """The rows from which something can be learned, with their sequences, in their order."""
        for some in batched(rows, TOGETHER):
            work = [self._work(row) for row in some]
            tokens = {
                special: self._tokenize([t for w in work if w.special is special for t in w.texts], special)
                for special in (True, False)
            }
            for row, one in zip(some, work, strict=True):
                source = tokens[one.special]
                whole = one.finish([next(source) for _ in one.texts])
                if fitted := self._fit(whole):
                    yield row, fitted

    def blocks(self, pieces: Iterable[str]) -> Iterator[Sequence]:
        """Plain text as one stream of tokens, cut into blocks of ``max_length``."""
        start = [self._tokenizer.bos_token_id] if self._adds_bos() else []
        length = self._max_length - len(start)
        held: Ids = []
        for some in batched(pieces, 4):
            held += chain.from_iterable(self._tokenize(list(some), special=False))
            whole = len(held) - len(held) % length
            # the last block stays until more is known: a rest too short to learn from is left out
            whole -= length if whole == len(held) and whole else 0
            for at in range(0, whole, length):
                yield self._block(start + held[at : at + length])
            held = held[whole:]
        if len(held) >= SHORTEST_BLOCK or (self._counts.rows == 0 and len(start) + len(held) > 1):
            yield self._block(start + held)
        elif held:
            self._counts.rows += 1
            self._counts.dropped += 1

    def _block(self, ids: Ids) -> Sequence:
        self._counts.rows += 1
        self._measure(len(ids))
        return {"input_ids": ids, "labels": ids}

    def _tokenize(self, texts: list[str], special: bool) -> Iterator[Ids]:
        return iter(self._tokenizer(texts, add_special_tokens=special)["input_ids"] if texts else [])

    def _adds_bos(self) -> bool:
        bos = self._tokenizer.bos_token_id
        return bos is not None and self._tokenizer("a")["input_ids"][:1] == [bos]

    def _work(self, row: Row) -> _Work:
        match self._layout:
            case "messages":
                return self._chat(row["messages"], row.get("tools"))
            case "instruction" if self._tokenizer.chat_template:
                asked = f"{row['instruction']}\n\n{row['input']}" if row["input"].strip() else row["instruction"]
                return self._chat(
                    [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}], None
                )
            case "instruction":
                prompt = (WITH_INPUT if row["input"].strip() else WITHOUT_INPUT).format(**row)
                return self._answers(prompt, {"completion": row["output"]}, {})
            case "promptCompletion":
                extra = {"label": row["label"]} if "label" in row else {}
                return self._answers(row["prompt"], {"completion": row["completion"]}, extra)
            case "preference":
                return self._answers(row["prompt"], {"chosen": row["chosen"], "rejected": row["rejected"]}, {})
        return _Work([row["text"]], True, lambda ids: self._all(self._with_end(ids[0])))

    def _answers(self, prompt: Any, answers: dict[str, Any], extra: dict[str, Any]) -> _Work:
        """A prompt, which is not learned, and each answer to it."""
        chat = any(isinstance(answer, list) for answer in answers.values())
        if chat:
            texts = [self._render(prompt, None, generation_prompt=True) if prompt else ""]
            texts += [self._render(prompt + answer, None, generation_prompt=False) for answer in answers.values()]
        else:
            texts = [prompt, *(prompt + answer for answer in answers.values())]

        def finish(ids: list[Ids]) -> Sequence:
            before = ids[0] if texts[0] else []
            if chat:
                # a template may render the prompt alone differently at its end: the answer begins where they part
                before = before[: min(_common(before, whole) for whole in ids[1:])]
            after: dict[str, Ids] = {}
            for name, text, whole in zip(answers, texts[1:], ids[1:], strict=True):
                rest = whole[len(before) :]
                if whole[: len(before)] != before:
                    # tokens would merge across the border: the two are tokenised apart
                    rest = next(self._tokenize([text.removeprefix(texts[0])], special=False))
                after[name] = rest if chat else self._with_end(rest)
            if "completion" in after and "label" not in extra:
                ids_of = before + after["completion"]
                return {"input_ids": ids_of, "labels": [IGNORED] * len(before) + after["completion"]}
            return {"prompt_ids": before, **{f"{name}_ids": found for name, found in after.items()}, **extra}

        return _Work(texts, not chat, finish)

    def _chat(self, messages: list[Message], tools: list[Any] | None) -> _Work:
        """The loss looks at the assistant's turns only: at what the template adds after the prompt for them."""
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        texts = [self._render(messages, tools, generation_prompt=False)]
        for index in turns:
            texts.append(self._render(messages[:index], tools, generation_prompt=True) if index else "")
            texts.append(self._render(messages[: index + 1], tools, generation_prompt=False))

        def finish(ids: list[Ids]) -> Sequence:
            whole = ids[0]
            labels = [IGNORED] * len(whole)
            for before, after in zip(ids[1::2], ids[2::2], strict=True):
                if whole[: len(before)] != before or whole[: len(after)] != after:
                    # a template that renders a turn differently once others follow does not tell which tokens are whose
                    self._counts.whole_conversation += 1
                    return self._all(whole)
                labels[len(before) : len(after)] = whole[len(before) : len(after)]
            return {"input_ids": whole, "labels": labels}

        return _Work(texts, False, finish)

    def _render(self, messages: list[Message], tools: list[Any] | None, *, generation_prompt: bool) -> str:
        if not self._tokenizer.chat_template:
            raise no_chat_template()
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
                f"the model's chat template refuses a chat of the roles {roles} ({error}), which begins with {messages[0]['content'][:60]!r}: change such rows, or "
                "make texts of them with spec.dataset.template",
                "spec.dataset.uri",
            ) from error

    def _all(self, ids: Ids) -> Sequence:
        return {"input_ids": ids, "labels": list(ids)}

    def _with_end(self, ids: Ids) -> Ids:
        """The ids with an end-of-text token, so that the model learns to stop."""
        return ids if self._end is None or ids[-1:] == [self._end] else [*ids, self._end]

    def _fit(self, whole: Sequence) -> Sequence | None:
        """Cut what is too long; None if then nothing is left to learn from."""
        if "input_ids" in whole:
            longest, ends = (
                len(whole["input_ids"]),
                [[label for label in whole["labels"][-END_WITHIN:] if label != IGNORED]],
            )
            fitted = {name: ids[: self._max_length] for name, ids in whole.items()}
            learns = any(label != IGNORED for label in fitted["labels"][1:])
        else:
            before = len(whole["prompt_ids"])
            answers = [name for name in whole if name.endswith("_ids") and name != "prompt_ids"]
            longest = before + max(len(whole[name]) for name in answers)
            ends = [whole[name][-END_WITHIN:] for name in answers]
            room = max(self._max_length - before, 0)
            fitted = whole | {name: whole[name][:room] for name in answers}
            learns = all(fitted[name] and before + len(fitted[name]) > 1 for name in answers)
            learns = learns and (len(answers) == 1 or fitted[answers[0]] != fitted[answers[1]])
        self._measure(longest)
        cut = longest > self._max_length
        self._counts.truncated += cut
        self._counts.cut_tokens += max(longest - self._max_length, 0)
        if not learns:
            self._counts.dropped += 1
            return None
        self._counts.without_end += not cut and self._end is not None and not all(self._end in end for end in ends)
        return fitted

    def _measure(self, length: int) -> None:
        counts = self._counts
        bucket = next((number for number, end in enumerate(LENGTHS) if length <= end), len(LENGTHS))
        counts.lengths[bucket] += 1
        counts.longest = max(counts.longest, length)


def no_chat_template() -> Failure:
    """The failure for chats that the model's tokenizer cannot make a text of."""
    return Failure(
        Reason.MODEL_UNSUPPORTED,
        "the dataset has chat messages, but the model's tokenizer has no chat template: take an instruct model, give prompts and completions as texts, or "
        "make texts of the messages with spec.dataset.template",
        "spec.dataset.format",
    )


def _common(some: Ids, others: Ids) -> int:
    """How many tokens two sequences begin with alike."""
    return next((n for n, (a, b) in enumerate(zip(some, others, strict=False)) if a != b), min(len(some), len(others)))


def batched(things: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` things, the last one shorter (itertools.batched, which Python 3.11 lacks)."""
    iterator = iter(things)
    while some := list(islice(iterator, size)):
        yield some
