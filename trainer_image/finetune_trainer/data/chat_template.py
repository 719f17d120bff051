"""Render chats with a chat template, in the form of messages that this template reads."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateSyntaxError

from finetune_api.reasons import Reason
from finetune_trainer.data.values import Message
from finetune_trainer.runtime.failures import Failure

Span = tuple[int, int]
"""The first character, and the one after the last."""
ABSENT = object()
"""Stands for the content of a message without the key ``content``."""
QUESTION, ANSWER = "What zqxj?", "Because jxqz."
"""Contents of the chats with which a template is tried. No template contains these words itself."""
FUNCTION, ARGUMENT, VALUE = "find_zqxj", "place_zqxj", "Jxqz"


class TemplateRefusalError(Exception):
    """A chat template fails for a chat; the message is the template's."""


@dataclass(frozen=True)
class Rendering:
    """A chat as text, with the spans between ``{% generation %}`` and ``{% endgeneration %}``."""

    text: str
    marked: list[Span]


@dataclass(frozen=True)
class MessageForm:
    """The form of messages that a template reads.

    ``parts``: whether contents are lists of parts. ``empty``: the content of a message that only calls tools.
    ``json_arguments``: whether the arguments of a call are JSON and not an object.
    """

    parts: bool = False
    empty: Any = ""
    json_arguments: bool = False

    def write(self, message: Message) -> Message:
        """Return the message in this form, without the keys that only the training uses."""
        written = {key: value for key, value in message.items() if key not in ("train", "content")}
        content = message.get("content") or (self.empty if message.get("tool_calls") else "")
        if content is not ABSENT:
            written["content"] = [{"type": "text", "text": content}] if self.parts and content else content
        if self.json_arguments and message.get("tool_calls"):
            written["tool_calls"] = [_write_arguments(call) for call in message["tool_calls"]]
        return written


class ChatTemplate:
    """Render chats with one template of a tokenizer."""

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        """Use ``template``, or the tokenizer's own if it is None."""
        self._tokenizer, self._template = tokenizer, template

    @property
    def is_marked(self) -> bool:
        """Return whether the template marks the assistant's turns."""
        return any(_is_marked(text) for text in _texts(self._template or self._tokenizer.chat_template))

    def render(self, messages: list[Message], tools: list[Any] | None, *, generation_prompt: bool = False) -> Rendering:
        """Render a chat.

        Args:
            messages: The chat, with at least one message.
            tools: The tools that the assistant may call.
            generation_prompt: Whether to begin the assistant's next turn.

        Raises:
            TemplateRefusalError: The template refuses the chat.
            Failure: MODEL_UNSUPPORTED: the template has a syntax error.
        """
        form = self._tool_form if any(message.get("tool_calls") for message in messages) else self._form
        return self._render([form.write(message) for message in messages], tools, generation_prompt)

    def _render(self, messages: list[Message], tools: list[Any] | None, generation_prompt: bool) -> Rendering:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            template = self._template or self._tokenizer.get_chat_template(None, tools)
            rendered: Any = render_jinja_template(
                conversations=[messages],
                tools=tools,
                chat_template=template,
                add_generation_prompt=generation_prompt,
                return_assistant_tokens_mask=_is_marked(template),
                **self._tokenizer.special_tokens_map,
            )
        except TemplateSyntaxError as error:
            raise Failure(
                Reason.MODEL_UNSUPPORTED,
                f"the model's chat template is no Jinja template: {error.message} (line {error.lineno}): correct it in "
                "the model's files, or choose another model",
                "spec.model.uri",
            ) from error
        except Exception as error:
            # A template is a program, which may fail in any way.
            raise TemplateRefusalError(str(error).strip() or type(error).__name__) from error
        texts, marked = rendered
        return Rendering(texts[0], [(start, end) for start, end in marked[0]] if marked else [])

    @cached_property
    def _form(self) -> MessageForm:
        """Return the form in which the template reads the contents of messages.

        Raises:
            TemplateRefusalError: The template does not write the contents.
        """
        chat = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
        forms = (MessageForm(), MessageForm(parts=True))
        if form := self._find_form(chat, (QUESTION, ANSWER), iter(forms)):
            return form
        if self._find_form(chat, (), iter(forms)):
            raise TemplateRefusalError("it does not write the contents of messages")
        return MessageForm()

    @cached_property
    def _tool_form(self) -> MessageForm:
        """Return the form in which the template reads a tool call."""
        call = {"type": "function", "function": {"name": FUNCTION, "arguments": {ARGUMENT: VALUE}}}
        chat: list[Message] = [{"role": "user", "content": QUESTION}, {"role": "assistant", "tool_calls": [call]}]
        forms = (
            MessageForm(self._form.parts, empty, json_arguments)
            for empty in ("", None, ABSENT)
            for json_arguments in (False, True)
        )
        return self._find_form(chat, (FUNCTION, ARGUMENT, VALUE), forms) or self._form

    def _find_form(
        self, chat: list[Message], texts: tuple[str, ...], forms: Iterator[MessageForm]
    ) -> MessageForm | None:
        """Return the first form of a chat whose rendering contains all ``texts``; None if there is none."""
        for form in forms:
            try:
                text = self._render([form.write(message) for message in chat], None, False).text
            except TemplateRefusalError:
                continue
            if all(expected in text for expected in texts):
                return form
        return None


def find_training_template(tokenizer: Any) -> str | None:
    """Return TRL's training template for the tokenizer's template; None if there is none, or it needs none."""
    if not tokenizer.chat_template or any(_is_marked(text) for text in _texts(tokenizer.chat_template)):
        return None
    from trl.chat_template_utils import get_training_chat_template

    try:
        return get_training_chat_template(tokenizer)
    except Exception:  # noqa: BLE001 -- TRL tries the template, which may fail in any way; ValueError if it is unknown
        return None


def _write_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    rewritten = function | {"arguments": json.dumps(function.get("arguments", {}), ensure_ascii=False)}
    return call | {"function": rewritten} if "function" in call else rewritten


def _texts(template: Any) -> list[str]:
    """Return the template, or each of its named variants."""
    return list(template.values()) if isinstance(template, dict) else [template] if template else []


def _is_marked(template: str) -> bool:
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None
