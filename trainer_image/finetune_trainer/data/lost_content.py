"""Find what a chat template leaves out of a chat: messages, tools, tool calls and reasoning."""

import json
import re
from collections.abc import Iterable
from typing import Any

from finetune_api.data_counts import Counts
from finetune_trainer.data.chat_template import ChatTemplate, TemplateRefusalError
from finetune_trainer.data.chats import REASONING_KEYS
from finetune_trainer.data.values import Message

REASONING_CHARACTERS = 80
"""How much of a reasoning is looked for in the rendered chat."""
THINKING = re.compile(r"<think>(.*?)</think>", re.DOTALL)
"""Reasoning in a content, as models write it."""
WORD, SEARCHED_CHARACTERS = re.compile(r"[^\W\d_]+"), 2000
"""The words of a message of which the longest is looked for in the rendered chat, and where they are taken from."""
ABSENT_WORD = "jxqzvw"
"""A word that no template contains."""


class LostContent:
    """Compare chats with what one template writes of them.

    A word of a message may be in the text by chance, for example in another message. So each sequence of roles is also
    rendered once with contents that are nowhere else.
    """

    def __init__(self, template: ChatTemplate) -> None:
        """Use a template."""
        self._template = template
        self._losing: dict[tuple[str | bool, ...], bool] = {}

    def check_calls(self, messages: list[Message], tools: list[Any] | None, turns: Iterable[int], learned: str) -> None:
        """Check that the learned text contains the tool calls of some turns.

        Raises:
            TemplateRefusalError: The template leaves a call out.
        """
        for turn in (index for index in turns if messages[index].get("tool_calls")):
            said = json.dumps({**messages[turn], "tool_calls": None}, default=str, ensure_ascii=False)
            for call in messages[turn]["tool_calls"]:
                name = _function(call)["name"]
                if name not in learned or (name in said and not self._writes_calls(messages, tools, turn)):
                    raise TemplateRefusalError(f"it leaves out the call {call}")

    def _writes_calls(self, messages: list[Message], tools: list[Any] | None, turn: int) -> bool:
        """Return whether the template writes the names of a turn's calls, if they are names that occur nowhere else."""
        renamed = [
            call | {"function": _function(call) | {"name": ABSENT_WORD}} for call in messages[turn]["tool_calls"]
        ]
        changed = [*messages[:turn], messages[turn] | {"tool_calls": renamed}, *messages[turn + 1 :]]
        return ABSENT_WORD in self._template.render(changed, tools).text

    def loses_messages(self, messages: list[Message], tools: list[Any] | None, text: str) -> bool:
        """Return whether the text of a chat lacks a message of others than the assistant, or a tool.

        It may also lack what the assistant says beside a call.
        """
        roles = (*(message["role"] for message in messages), bool(tools))
        if roles not in self._losing:
            self._losing[roles] = self._loses_roles(messages, tools)
        if self._losing[roles]:
            return True
        contents = (
            str(message.get("content") or "")
            for message in messages
            if message["role"] != "assistant" or message.get("tool_calls")
        )
        words = [max(WORD.findall(content[:SEARCHED_CHARACTERS]), key=len, default="") for content in contents]
        words += [str(_function(tool).get("name", "")) for tool in tools or []]
        # Templates may write a content as JSON or as Python's notation, but they keep its words.
        return any(word not in text and word.lower() not in text.lower() for word in words)

    def _loses_roles(self, messages: list[Message], tools: list[Any] | None) -> bool:
        """Return whether the template writes nothing of a message of others, or of the tools, whatever they say."""
        marks = {
            index: f"{ABSENT_WORD}{index}."
            for index, message in enumerate(messages)
            if message["role"] != "assistant" and message.get("content")
        }
        marked = [
            message | {"content": marks[index]} if index in marks else message for index, message in enumerate(messages)
        ]
        try:
            text = self._template.render(marked, tools).text if messages else ""
            loses_tools = bool(tools and messages) and text == self._template.render(marked, None).text
        except TemplateRefusalError:
            return False  # it refuses these contents, but not the real ones
        return loses_tools or any(mark.lower() not in text.lower() for mark in marks.values())


def loses_reasoning(message: Message, text: str) -> bool:
    """Return whether a rendered chat lacks the reasoning of a message."""
    reasoning = [message[key] for key in REASONING_KEYS if isinstance(message.get(key), str)]
    reasoning += THINKING.findall(message.get("content") or "")
    return any(part.strip()[:REASONING_CHARACTERS] not in text for part in reasoning)


def describe_lost(counts: Counts) -> list[str]:
    """Return a warning for each kind of content that the template leaves out of chats."""
    warnings = [
        (counts.lost_reasoning, _describe_lost_reasoning(counts)),
        (counts.lost_messages, _describe_lost_messages(counts)),
    ]
    return [text for number, text in warnings if number]


def _describe_lost_messages(counts: Counts) -> str:
    return (
        f"the model's chat template leaves out messages or tools of {counts.lost_messages} chats, so the model does "
        "not see them (finetune preview shows what it sees): choose a model whose template writes them, or move their "
        "text into messages of the user"
    )


def _describe_lost_reasoning(counts: Counts) -> str:
    return (
        f"the model's chat template leaves out the reasoning ({' or '.join(REASONING_KEYS)}, or <think> in content) of "
        f"{counts.lost_reasoning} chats, so it is not learned: write it into content as the model writes it, or "
        "remove it"
    )


def _function(call_or_tool: Any) -> dict[str, Any]:
    """Return the function of a tool or of a call, with its name."""
    function = call_or_tool.get("function", call_or_tool)
    return function if isinstance(function, dict) else {}
