"""Find the assistant's turns in a rendered chat: from the header's end to the token that ends the turn."""

import itertools
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from finetune_trainer.data.chat_template import ANSWER, QUESTION, ChatTemplate, Span, TemplateRefusalError
from finetune_trainer.data.prefix import common_prefix_length
from finetune_trainer.data.values import Message

REPLACEMENTS = ("@a reply@", "#a reply#", "~a reply~")
"""Texts that replace the content of a turn, to see which characters change. They begin and end differently."""


class UnknownTurnsError(Exception):
    """The assistant's turns cannot be found in what the template writes; the message says why."""


@dataclass(frozen=True)
class Conversation:
    """A rendered chat, and the spans of the requested turns of the assistant."""

    text: str
    turns: list[Span]


class TurnFinder:
    """Find turns by the template's markers, by those of TRL's training template, or by comparing renderings."""

    def __init__(self, tokenizer: Any, training_template: str | None) -> None:
        """Choose the template that renders whole chats.

        Args:
            tokenizer: The model's tokenizer, with its chat template.
            training_template: TRL's training template to use instead; None if there is none.
        """
        self._tokenizer = tokenizer
        self.served = ChatTemplate(tokenizer)
        self._training = ChatTemplate(tokenizer, training_template) if training_template else self.served

    def find(
        self, messages: list[Message], tools: list[Any] | None, turns: list[int], *, as_served: bool = False
    ) -> Conversation:
        """Render a chat and find turns of the assistant.

        Args:
            messages: The chat.
            tools: The tools that the assistant may call.
            turns: The positions of the turns in the chat.
            as_served: Whether to use the tokenizer's own template only.

        Raises:
            TemplateRefusalError: The template refuses the chat.
            UnknownTurnsError: The template does not tell the turns apart.
        """
        if self._training.is_marked and not (as_served and self._training is not self.served):
            return self._find_marked(messages, tools, turns)
        text = self.served.render(messages, tools).text
        spans = [self._find_by_comparison(messages, tools, turn, text) for turn in turns]
        for turn, span in zip(turns, spans, strict=True):
            _check_alone(messages, turn, text[slice(*span)])
        return Conversation(text, spans)

    def _find_marked(self, messages: list[Message], tools: list[Any] | None, turns: list[int]) -> Conversation:
        rendering = self._training.render(messages, tools)
        assistants = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        learned_spans: list[Span] = []
        for turn in turns:
            if len(rendering.marked) == len(assistants):
                spans = [rendering.marked[assistants.index(turn)]]
            else:
                # Some templates mark one turn in several spans: take all of them up to the next turn.
                after = next((index for index in assistants if index > turn), None)
                first = len(self._training.render(messages[:turn], tools).marked) if turn else 0
                last = len(self._training.render(messages[:after], tools).marked) if after else len(rendering.marked)
                spans = rendering.marked[first:last]
            if not any(start < end for start, end in spans):
                raise UnknownTurnsError(f"its generation markers do not mark message {turn + 1}")
            learned_spans += [(self._skip_header(rendering.text, start), end) for start, end in spans]
        return Conversation(rendering.text, learned_spans)

    def _skip_header(self, text: str, start: int) -> int:
        """Return where a marked turn begins after the part that the generation prompt already contains."""
        return start + len(self._marked_header) if text.startswith(self._marked_header, start) else start

    @cached_property
    def _marked_header(self) -> str:
        """Return the part of the generation prompt that the template marks as the assistant's."""
        try:
            question = self._training.render(_chat(1), None, generation_prompt=True).text
            rendering = self._training.render(_chat(2), None)
        except TemplateRefusalError:
            return ""
        begin = rendering.marked[0][0] if rendering.marked else len(rendering.text)
        return rendering.text[begin : common_prefix_length(question, rendering.text)]

    def _find_by_comparison(self, messages: list[Message], tools: list[Any] | None, turn: int, text: str) -> Span:
        """Find a turn by rendering the chat up to it, and the chat with another content in it."""
        before = self.served.render(messages[:turn], tools, generation_prompt=True).text if turn else ""
        after = self.served.render(messages[: turn + 1], tools).text if turn + 1 < len(messages) else text
        if turn and text.startswith(before) and text.startswith(after):
            return len(before), len(after)
        start, end = self._find_content(messages, tools, turn, text)
        if turn and text.startswith(self.served.render(messages[:turn], tools).text):
            start = min(start, common_prefix_length(text, before))
        if text.startswith(after):
            return start, len(after)
        ending = self.ending
        ending_start = text.find(ending, end) if ending.strip() else -1
        if ending_start < 0:
            raise UnknownTurnsError(
                f"it writes message {turn + 1} in another way if others follow, and no token after each answer"
            )
        return start, ending_start + len(ending)

    def _find_content(self, messages: list[Message], tools: list[Any] | None, turn: int, text: str) -> Span:
        """Find the content of a turn: the characters that change if the content changes."""
        content = (messages[turn].get("content") or "").strip()
        replacement = next(
            candidate for candidate in REPLACEMENTS if not content or candidate[0] not in (content[0], content[-1])
        )
        changed = [*messages[:turn], messages[turn] | {"content": replacement}, *messages[turn + 1 :]]
        altered = self.served.render(changed, tools).text
        start = common_prefix_length(text, altered)
        if altered == text:
            raise UnknownTurnsError(f"it does not write the content of message {turn + 1}")
        return start, len(text) - common_prefix_length(text[start:][::-1], altered[start:][::-1])

    @cached_property
    def ending(self) -> str:
        """Return what the template writes after each turn of the assistant, in whole tokens."""
        try:
            rests = [self.served.render(_chat(number), None).text.partition(ANSWER)[2] for number in (2, 3)]
        except TemplateRefusalError:
            return ""
        last, inner = (self._tokenizer.tokenize(rest) for rest in rests)
        shared = last[: common_prefix_length(last, inner)]
        starts = (rests[0][:size] for size in range(len(rests[0]) + 1))
        return next((text for text in starts if self._tokenizer.tokenize(text) == shared), "")


def _check_alone(messages: list[Message], turn: int, text: str) -> None:
    """Check that a turn's text does not have the result of a tool that it calls.

    Raises:
        UnknownTurnsError: It has.
    """
    for index in itertools.takewhile(lambda index: messages[index]["role"] == "tool", range(turn + 1, len(messages))):
        content = (messages[index].get("content") or "").strip()
        is_inside = len(content) > 1 and content in text
        if is_inside and content not in json.dumps(messages[turn], default=str, ensure_ascii=False):
            raise UnknownTurnsError(f"it writes message {index + 1} into the turn of message {turn + 1}")


def _chat(number: int) -> list[Message]:
    """Return a chat with this number of turns."""
    return [
        {"role": "assistant", "content": ANSWER} if index % 2 else {"role": "user", "content": QUESTION}
        for index in range(number)
    ]
