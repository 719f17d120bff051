"""Tokenize rows, with a label for each token that the loss uses, and count what is cut or dropped."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any, NoReturn, Protocol, TypeVar

from finetune_api.data_counts import LENGTHS, Counts
from finetune_api.reasons import Reason
from finetune_trainer.data import alpaca, special_tokens
from finetune_trainer.data.chat_template import Span, TemplateRefusalError
from finetune_trainer.data.chat_turns import TurnFinder, UnknownTurnsError
from finetune_trainer.data.columns import Layout
from finetune_trainer.data.lost_content import LostContent, loses_reasoning
from finetune_trainer.data.prefix import common_prefix_length
from finetune_trainer.data.values import Message, Row
from finetune_trainer.runtime.failures import Failure

IGNORED = -100
"""Label of a token that the loss ignores (torch.nn.CrossEntropyLoss's ignore_index)."""
MIN_BLOCK_TOKENS = 8
"""The last block of plain text is dropped if it is shorter."""
TOKENIZER_BATCH = 64
"""How many rows the tokenizer gets at once; it processes them in parallel."""
CHARACTERS_PER_TOKEN = 128
"""Characters of a text that are tokenized for each token of maxLength.

The longest tokens of Llama 3 and Qwen, runs of spaces, have 128 characters; tokens of texts have about four.
"""
END_WINDOW = 4
"""An end-of-text token among this many last tokens counts as the end, because templates add a newline after it."""
CUT_AWAY = "maxLength leaves nothing to learn from"
SAME_ANSWERS = "the model sees no difference between its two answers"
NOTHING_LEARNED = "it has no text to learn from"
CHAT_LAYOUTS = ("messages", "instruction", "promptCompletion")
"""Layouts whose rows may be chats with the turns of an assistant among others."""
ID_COLUMNS = ("input_ids", "prompt_ids", "completion_ids", "chosen_ids", "rejected_ids")
TokenizedRow = dict[str, Any]
"""Columns of TRL: input_ids and labels, or prompt_ids and the ids of each answer."""
TokenIds = list[int]
T = TypeVar("T")


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text. ``spans`` has the first character of each token, and the one after its last, if known."""

    ids: TokenIds
    spans: list[tuple[int, int]] | None = None


@dataclass(frozen=True)
class _PendingRow:
    """The texts of a row that are to be tokenized, and the function that joins their tokens to a sequence.

    ``needs_spans`` says whether the function uses the spans of the tokens.
    """

    texts: list[str]
    finish: Callable[[list[Tokens]], TokenizedRow]
    needs_spans: bool = False


@dataclass(frozen=True)
class Encoding:
    """The settings, in addition to the tokenizer, that decide how rows become tokens.

    ``end_tokens`` end a generation, as the model's generation_config has them; ``embeddings`` is the number of tokens
    that the model has embeddings for. ``training_template`` is TRL's in place of the tokenizer's chat template.
    ``assistant_only_loss`` says whether only the assistant's turns of a chat are learned.
    """

    end_tokens: frozenset[int] = frozenset()
    embeddings: int | None = None
    training_template: str | None = None
    assistant_only_loss: bool = True


class Refuse(Protocol):
    """Receives the problem of a row, and the field that may remedy it."""

    def __call__(self, problem: str, field: str = ..., /) -> None:
        """Take the problem."""


class Encoder:
    """Tokenize rows into sequences of at most ``max_length`` tokens."""

    def __init__(
        self,
        tokenizer: Any,
        layout: Layout,
        max_length: int,
        counts: Counts,
        encoding: Encoding = Encoding(),
        refuse: Refuse | None = None,
    ) -> None:
        """Create an encoder for one dataset.

        Args:
            tokenizer: The model's tokenizer.
            layout: The format of the rows.
            max_length: Maximum number of tokens in a sequence.
            counts: Counts that are updated with each row.
            encoding: The settings that decide how rows become tokens.
            refuse: Receives the problem of a row that cannot be encoded, which is then left out. None: such a row
                raises Failure.
        """
        self._tokenizer, self._layout, self._max_length, self._counts = tokenizer, layout, max_length, counts
        self._encoding, self._refuse = encoding, refuse or _raise_refused
        self._end = tokenizer.eos_token_id
        self.left_out = ""
        """Why the last row that was left out is left out."""
        self._turns = TurnFinder(tokenizer, encoding.training_template) if tokenizer.chat_template else None
        self._start = special_tokens.find_start(tokenizer)
        self._added = frozenset(tokenizer.get_added_vocab().values())
        ending = self._turns.ending if self._turns else ""
        self._ends = special_tokens.find_ends(tokenizer, encoding.end_tokens, ending)

    def encode(self, rows: Iterable[Row]) -> Iterator[tuple[Row, TokenizedRow]]:
        """Tokenize rows in their order, without those that the loss cannot learn from."""
        for batch in batched(self._prepare_all(rows), TOKENIZER_BATCH):
            texts = [self._cut(text) for _, pending in batch for text in pending.texts]
            tokens = iter(self._tokenize(texts, spans=any(pending.needs_spans for _, pending in batch)))
            for row, pending in batch:
                sequence = pending.finish([next(tokens) for _ in pending.texts])
                if fitted := self._fit(sequence):
                    self._check_embeddings(fitted)
                    yield row, fitted

    def _prepare_all(self, rows: Iterable[Row]) -> Iterator[tuple[Row, _PendingRow]]:
        for row in rows:
            try:
                yield row, self._prepare(row)
            except TemplateRefusalError as error:
                self._refuse(f"the model's chat template refuses it ({error})")
            except UnknownTurnsError as error:
                self._refuse(describe_unknown_turns(error), "spec.dataset.assistantOnlyLoss")

    def encode_text(self, pieces: Iterable[str]) -> Iterator[TokenizedRow]:
        """Tokenize plain text as one stream, and cut it into blocks of ``max_length`` tokens."""
        start = self._start
        length = self._max_length - len(start)
        rest: TokenIds = []
        for batch in batched(pieces, 4):
            rest += chain.from_iterable(tokens.ids for tokens in self._tokenize(list(batch)))
            complete = len(rest) - len(rest) % length
            # Hold the last block back: if no more text follows, it may be too short to learn from.
            complete -= length if complete == len(rest) and complete else 0
            for begin in range(0, complete, length):
                yield self._block(start + rest[begin : begin + length])
            rest = rest[complete:]
        if len(rest) >= MIN_BLOCK_TOKENS or (self._counts.rows == 0 and len(start) + len(rest) > 1):
            yield self._block(start + rest)
        elif rest:
            self._counts.rows += 1
            self._counts.dropped += 1

    def _block(self, ids: TokenIds) -> TokenizedRow:
        self._counts.rows += 1
        self._count_length(len(ids))
        return {"input_ids": ids, "labels": ids}

    def _tokenize(self, texts: list[str], *, spans: bool = False) -> list[Tokens]:
        """Tokenize texts without the special tokens that the tokenizer adds by itself."""
        if not texts:
            return []
        offsets = spans and self._tokenizer.is_fast
        encoded = self._tokenizer(texts, add_special_tokens=False, return_offsets_mapping=offsets)
        if not offsets:
            return [Tokens(ids) for ids in encoded["input_ids"]]
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return [Tokens(ids, of_tokens) for ids, of_tokens in pairs]

    def _cut(self, text: str) -> str:
        """Cut a text far beyond maxLength before it is tokenized, to bound memory and time."""
        return text[: CHARACTERS_PER_TOKEN * self._max_length]

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
                if not extra and _has_other_parts(row["completion"]):
                    return self._prepare_chat(_without_training(row["prompt"]) + row["completion"], row.get("tools"))
                return self._prepare_answers(row["prompt"], {"completion": row["completion"]}, extra, row.get("tools"))
            case "preference":
                answers = {"chosen": row["chosen"], "rejected": row["rejected"]}
                return self._prepare_answers(row["prompt"], answers, {}, row.get("tools"))
        return _PendingRow(
            [row["text"]],
            lambda tokens: _learn_all(self._add_end(special_tokens.add_start(self._start, tokens[0].ids), row["text"])),
        )

    def _prepare_answers(
        self, prompt: Any, answers: dict[str, Any], extra: dict[str, Any], tools: list[Any] | None = None
    ) -> _PendingRow:
        """Prepare a prompt, which is not learned, and each answer to it."""
        chat = any(isinstance(answer, list) for answer in answers.values())
        if chat:
            texts = self._render_answers(prompt, list(answers.values()), tools)
        else:
            texts = [prompt, *(prompt + answer for answer in answers.values())]

        def finish(tokenized: list[Tokens]) -> TokenizedRow:
            sequences = [tokens.ids for tokens in tokenized]
            if not chat:
                sequences = [special_tokens.add_start(self._start, ids) for ids in sequences]
            prompt_ids = sequences[0]
            if chat:
                # A template may end a prompt without an answer differently: the answer starts where they differ.
                prompt_ids = prompt_ids[: min(common_prefix_length(prompt_ids, ids) for ids in sequences[1:])]
            answer_ids: dict[str, TokenIds] = {}
            for name, text, ids in zip(answers, texts[1:], sequences[1:], strict=True):
                rest = ids[len(prompt_ids) :]
                if ids[: len(prompt_ids)] != prompt_ids:
                    # A token would span prompt and answer: tokenize the answer alone.
                    rest = self._tokenize([self._cut(text.removeprefix(texts[0]))])[0].ids
                answer_ids[name] = rest if chat else self._add_end(rest, text)
            if "completion" in answer_ids and "label" not in extra:
                joined = prompt_ids + answer_ids["completion"]
                return {"input_ids": joined, "labels": [IGNORED] * len(prompt_ids) + answer_ids["completion"]}
            return {"prompt_ids": prompt_ids, **{f"{name}_ids": ids for name, ids in answer_ids.items()}, **extra}

        return _PendingRow(texts, finish)

    def _render_answers(
        self, prompt: list[Message], answers: list[list[Message]], tools: list[Any] | None
    ) -> list[str]:
        """Return the text of a prompt, and those of the prompt with each answer.

        Raises:
            TemplateRefusalError: The template refuses a chat, or leaves a tool call out.
        """
        template = self._chat_turns.served
        question = template.render(prompt, tools, generation_prompt=True).text if prompt else ""
        texts = []
        loses_any_reasoning = False
        for answer in answers:
            chat = prompt + self._without_ends(answer)
            text = template.render(chat, tools).text
            learned = text[common_prefix_length(question, text) :]
            self._lost_content.check_calls(chat, tools, range(len(prompt), len(chat)), learned)
            loses_any_reasoning |= any(loses_reasoning(turn, text) for turn in answer)
            texts.append(text)
        self._counts.lost_reasoning += loses_any_reasoning
        self._counts.lost_messages += self._lost_content.loses_messages(prompt, tools, texts[0])
        return [question, *texts]

    def _prepare_chat(self, messages: list[Message], tools: list[Any] | None) -> _PendingRow:
        """Prepare a chat. The assistant's turns are learned, except those with ``train: false``.

        Raises:
            TemplateRefusalError: The template refuses the chat.
            UnknownTurnsError: The assistant's turns cannot be found.
        """
        messages = self._without_ends(messages)
        assistants = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        left_out = [index for index in assistants if messages[index].get("train") is False]
        learns_all = not self._encoding.assistant_only_loss
        searched = left_out if learns_all else [index for index in assistants if index not in left_out]
        chat = self._chat_turns.find(messages, tools, searched, as_served=learns_all)
        if not learns_all:
            self._lost_content.check_calls(
                messages, tools, searched, "".join(chat.text[slice(*span)] for span in chat.turns)
            )
        lost = any(loses_reasoning(messages[index], chat.text) for index in assistants)
        loses_messages = self._lost_content.loses_messages(messages, tools, chat.text)
        borders = [border for span in chat.turns for border in span]
        # A slow tokenizer does not say where its tokens start: tokenize the text up to each border.
        texts = [chat.text] if self._tokenizer.is_fast else [chat.text, *(chat.text[:border] for border in borders)]

        def finish(tokenized: list[Tokens]) -> TokenizedRow:
            whole, ids = tokenized[0], tokenized[0].ids
            if whole.spans is not None:
                positions = [self._find_tokens(whole, turn) for turn in chat.turns]
            else:
                sizes = [common_prefix_length(ids, part.ids) for part in tokenized[1:]]
                positions = list(zip(sizes[::2], sizes[1::2], strict=True))
            labels = list(ids) if learns_all else [IGNORED] * len(ids)
            for first, last in positions:
                end = self._include_end(ids, first, last)
                labels[first:end] = [IGNORED] * (end - first) if learns_all else ids[first:end]
            self._counts.whole_conversation += learns_all
            self._counts.lost_reasoning += lost
            self._counts.lost_messages += loses_messages
            return {"input_ids": ids, "labels": labels}

        return _PendingRow(texts, finish, needs_spans=True)

    def _find_tokens(self, tokens: Tokens, turn: Span) -> tuple[int, int]:
        """Return the first token of a turn and the one after its last. A token across its beginning belongs to it.

        Such a token is the space at the end of a header with the first word of the answer, for example. A special
        token that takes the whitespace after it belongs to the header.
        """
        assert tokens.spans is not None, "asked for"  # noqa: S101
        first = bisect_right(tokens.spans, turn[0], key=lambda span: span[1])
        last = bisect_left(tokens.spans, turn[1], key=lambda span: span[0])
        while first < last and tokens.spans[first][0] < turn[0] and tokens.ids[first] in self._added:
            first += 1
        return first, last

    def _include_end(self, ids: TokenIds, first: int, last: int) -> int:
        """Return where a turn ends, including an end token right after it if the turn has none itself."""
        ended = any(token in self._ends for token in ids[max(first, last - END_WINDOW) : last])
        return last + 1 if not ended and last < len(ids) and ids[last] in self._ends else last

    @property
    def _chat_turns(self) -> TurnFinder:
        """Return the finder of turns.

        Raises:
            Failure: MODEL_UNSUPPORTED: the tokenizer has no chat template.
        """
        if self._turns is None:
            raise missing_chat_template()
        return self._turns

    @cached_property
    def _lost_content(self) -> LostContent:
        """Return what finds the parts of a chat that the template leaves out."""
        return LostContent(self._chat_turns.served)

    def _add_end(self, ids: TokenIds, text: str) -> TokenIds:
        """Append the end-of-text token if it is missing, so that the model learns to stop."""
        ended = (ids and ids[-1] in self._ends) or text.rstrip().endswith(self._end_texts)
        return ids if self._end is None or ended else [*ids, self._end]

    @cached_property
    def _end_texts(self) -> tuple[str, ...]:
        """Return the texts of the tokens that end a generation."""
        return tuple(text for text in map(self._tokenizer.decode, sorted(self._ends)) if text.strip())

    @cached_property
    def _written_ends(self) -> tuple[str, ...]:
        """Return those of the end texts that the chat template writes after an answer."""
        return tuple(end for end in self._end_texts if end in self._chat_turns.ending)

    def _without_ends(self, messages: list[Message]) -> list[Message]:
        """Return the messages without an end token in an answer that the template writes again."""
        written = self._written_ends
        return [
            message | {"content": _remove_end(message["content"], written)}
            if message["role"] == "assistant" and (message.get("content") or "").rstrip().endswith(written)
            else message
            for message in messages
        ]

    def _check_embeddings(self, fitted: TokenizedRow) -> None:
        """Check that the model has an embedding for each token.

        Raises:
            Failure: MODEL_UNSUPPORTED: it lacks one.
        """
        size = self._encoding.embeddings
        if size is None:
            return
        largest = max(max(ids, default=0) for name, ids in fitted.items() if name in ID_COLUMNS)
        if largest >= size:
            token = self._tokenizer.convert_ids_to_tokens(largest)
            raise Failure(
                Reason.MODEL_UNSUPPORTED,
                f"the tokenizer makes the token {token!r} with the id {largest} of the dataset's rows, but the model "
                f"has embeddings for {size} tokens only (ids up to {size - 1}; the tokenizer has "
                f"{len(self._tokenizer)}): the token was added without the embeddings. "
                "Resize them with resize_token_embeddings and save the model again, or use the tokenizer that belongs "
                "to the model",
                "spec.model.uri",
            )

    def _fit(self, sequence: TokenizedRow) -> TokenizedRow | None:
        """Cut a sequence that is too long; return None if nothing to learn is left."""
        if "input_ids" in sequence:
            longest, ends = (
                len(sequence["input_ids"]),
                [[label for label in sequence["labels"][-END_WINDOW:] if label != IGNORED]],
            )
            fitted = {name: ids[: self._max_length] for name, ids in sequence.items()}
            same, learns = False, any(label != IGNORED for label in fitted["labels"][1:])
        else:
            before = len(sequence["prompt_ids"])
            answers = [name for name in sequence if name.endswith("_ids") and name != "prompt_ids"]
            longest = before + max(len(sequence[name]) for name in answers)
            ends = [sequence[name][-END_WINDOW:] for name in answers]
            room = max(self._max_length - before, 0)
            fitted = sequence | {name: sequence[name][:room] for name in answers}
            learns = all(fitted[name] and before + len(fitted[name]) > 1 for name in answers)
            same = len(answers) == 2 and fitted[answers[0]] == fitted[answers[1]]
            learns = learns and not same
        self._count_length(longest)
        cut = longest > self._max_length
        self._counts.truncated += cut
        self._counts.cut_tokens += max(longest - self._max_length, 0)
        if not learns:
            self.left_out = CUT_AWAY if cut else SAME_ANSWERS if same else NOTHING_LEARNED
            self._counts.dropped += 1
            return None
        self._counts.without_end += not cut and self._end is not None and not all(self._ends & set(end) for end in ends)
        return fitted

    def _count_length(self, length: int) -> None:
        counts = self._counts
        bucket = next((number for number, end in enumerate(LENGTHS) if length <= end), len(LENGTHS))
        counts.lengths[bucket] += 1
        counts.longest = max(counts.longest, length)


def _raise_refused(problem: str, field: str = "spec.dataset.uri") -> NoReturn:
    raise Failure(Reason.DATASET_INVALID, f"a row cannot be used: {problem}", field)


def _learn_all(ids: TokenIds) -> TokenizedRow:
    return {"input_ids": ids, "labels": list(ids)}


def _remove_end(content: str, ends: tuple[str, ...]) -> str:
    content = content.rstrip()
    return content.removesuffix(next(end for end in ends if content.endswith(end)))


def _has_other_parts(completion: Any) -> bool:
    """Return whether a completion has more than one turn of the assistant, of which only the answers are learned."""
    return isinstance(completion, list) and (len(completion) > 1 or completion[0]["role"] != "assistant")


def _without_training(prompt: list[Message]) -> list[Message]:
    """Return the turns of a prompt, of which none is learned."""
    return [turn | {"train": False} if turn["role"] == "assistant" else turn for turn in prompt]


def describe_unknown_turns(error: UnknownTurnsError) -> str:
    """Describe the problem of a chat in which the template does not tell the assistant's turns apart."""
    return (
        f"only the assistant's turns are to be learned, but they cannot be found in the text of the model's chat "
        f"template: {error}. Give the model a chat template with {{% generation %}} markers, write the rows as prompts "
        "and completions, or learn whole conversations with spec.dataset.assistantOnlyLoss: false"
    )


def missing_chat_template() -> Failure:
    """Return the Failure for chats if the model's tokenizer has no chat template."""
    return Failure(
        Reason.MODEL_UNSUPPORTED,
        "the dataset has chat messages, but the model's tokenizer has no chat template: choose an instruct model, "
        "give prompts and completions as texts, or convert the messages to texts with spec.dataset.template",
        "spec.dataset.format",
    )


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` items, the last one shorter (itertools.batched, which Python 3.11 lacks)."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
