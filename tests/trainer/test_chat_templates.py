"""What is learned of a chat, with every chat template that TRL ships: the assistant's turns and their ends only."""

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from finetune_api.data_counts import Counts
from finetune_api.reasons import Reason
from finetune_trainer.data.chat_template import find_training_template
from finetune_trainer.data.tokens import IGNORED, Encoder, Encoding
from finetune_trainer.runtime.failures import Failure

TRL = importlib.util.find_spec("trl")
assert TRL is not None and TRL.origin is not None
SHIPPED = {path.stem: path.read_text() for path in sorted((Path(TRL.origin).parent / "chat_templates").glob("*.jinja"))}
SERVED = [name for name in SHIPPED if not name.endswith("_training")]
MARK = re.compile(
    r"<\|[^|<>{} ]+?\|>|<｜[^<>{} ]+?｜>|</?think>|<(?:start|end)_of_(?:turn|utterance)>|<[a-z_]+\|>|<\|[a-z_]+>"
)

SYSTEM = {"role": "system", "content": "Be brief."}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find_parcel",
            "description": "Find it.",
            "parameters": {
                "type": "object",
                "properties": {"number": {"type": "string", "description": "Its number."}},
            },
        },
    }
]
CALL = {
    "role": "assistant",
    "tool_calls": [{"type": "function", "function": {"name": "find_parcel", "arguments": {"number": "n-77"}}}],
}
RESULT = {"role": "tool", "name": "find_parcel", "content": "in Ghent"}
Messages = list[dict[str, Any]]


def chat(turns: int) -> Messages:
    return [
        message
        for n in range(1, turns + 1)
        for message in ({"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": f"Reply {n}."})
    ]


@cache
def tokenizer_of(template: str) -> Any:
    """Return a tokenizer of bytes, for which each word in the templates that looks like a special token is one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<pad>", *sorted({mark for text in SHIPPED.values() for mark in MARK.findall(text)})]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={text: number for number, text in enumerate(special + alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = template
    return tokenizer


@cache
def training_template_of(template: str) -> str | None:
    return find_training_template(tokenizer_of(template))


def learned(
    template: str, messages: Messages, tools: Any = None, *, with_trl: bool = True, **encoding: Any
) -> list[str]:
    """Return the learned texts of a chat: a text for each row of learned tokens."""
    tokenizer = tokenizer_of(template)
    training = training_template_of(template) if with_trl else None
    encoder = Encoder(tokenizer, "messages", 100_000, Counts(), Encoding(training_template=training, **encoding))
    ((_, row),) = encoder.encode([{"messages": messages, **({"tools": tools} if tools else {})}])
    runs: list[list[int]] = []
    for before, label in zip([IGNORED, *row["labels"]], row["labels"], strict=False):
        if label != IGNORED:
            if before == IGNORED:
                runs.append([])
            runs[-1].append(label)
    return [str(tokenizer.decode(run)) for run in runs]


ASKED_FOR_A_PARCEL = [*chat(1), *chat(2)[2:3], CALL, RESULT, {"role": "assistant", "content": "Reply 2."}]
THINKING = [*chat(2)[:3], {"role": "assistant", "content": "Reply 2.", "reasoning_content": "Let me see."}]
WITHOUT_SYSTEM = {"gemma"}
WITHOUT_TOOLS = {
    "cohere", "cohere2", "gemma", "gemma3", "idefics3", "lfm2", "llama3", "llava_next", "phi3", "phi3_5", "qwen2_5_vl",
    "smolvlm",
}  # fmt: skip
"""Templates that refuse tools, or leave out the call of one."""
WITHOUT_REASONING = WITHOUT_TOOLS | {
    "deepseek_r1_distill", "deepseekv3", "gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "lfm2_v2", "llama3_1",
    "llama3_2", "qwen2_5", "qwen3_instruct_2507", "qwen3_vl",
}  # fmt: skip
"""Templates that do not write ``reasoning_content``."""
CALL_WITHOUT_END = {"deepseek_r1_distill", "diffusion_gemma"}
"""Templates that write no end after a call: the tool's answer follows."""
ONLY_WITH_TRL = {"gptoss", "glm4moe"}
"""Templates that end the last turn in another way than the others, so that renderings do not show the ends."""


def check(learned_texts: list[str], *contents: str, ends: bool = True) -> None:
    """Check that each content is a learned text with an end token, and nothing else of the chat is learned."""
    assert len(learned_texts) == len(contents)
    for text, content in zip(learned_texts, contents, strict=True):
        assert content in text
        assert not ends or MARK.search(text.rstrip()[-30:]) or text.rstrip().endswith("</s>"), text
        for unlearned in ("Question", "Be brief", "in Ghent", "Find it", "user<|message|>Question"):
            assert unlearned not in text


@pytest.mark.parametrize("with_trl", [True, False], ids=["with TRL", "without TRL"])
@pytest.mark.parametrize("name", SERVED)
def test_the_assistants_turns_are_learned_with_their_ends_and_nothing_else(name: str, with_trl: bool) -> None:
    template, ends = SHIPPED[name], with_trl or name not in ONLY_WITH_TRL
    if name == "gptoss" and not with_trl:
        with pytest.raises(Failure, match="cannot be found in the text"):
            learned(template, chat(2), with_trl=False)
        return
    for turns in (1, 2, 3):
        replies = [f"Reply {n}." for n in range(1, turns + 1)]
        check(learned(template, chat(turns), with_trl=with_trl), *replies, ends=ends)
        assert learned(template, chat(turns), with_trl=with_trl)[0].count("Reply") == 1
    system = [SYSTEM, *chat(2)]
    if name in WITHOUT_SYSTEM:
        with pytest.raises(Failure, match="the model's chat template refuses it"):
            learned(template, system, with_trl=with_trl)
    else:
        check(learned(template, system, with_trl=with_trl), "Reply 1.", "Reply 2.", ends=ends)
    if name in WITHOUT_TOOLS:
        with pytest.raises(Failure, match="the model's chat template refuses it"):
            learned(template, ASKED_FOR_A_PARCEL, TOOLS, with_trl=with_trl)
    else:
        learned_texts = learned(template, ASKED_FOR_A_PARCEL, TOOLS, with_trl=with_trl)
        check(learned_texts, "Reply 1.", "find_parcel", "Reply 2.", ends=ends and name not in CALL_WITHOUT_END)
        assert "n-77" in learned_texts[1]
    thought = learned(template, THINKING, with_trl=with_trl)
    check(thought, "Reply 1.", "Reply 2.", ends=ends)
    assert ("Let me see." in thought[1]) is (name not in WITHOUT_REASONING)


@pytest.mark.parametrize("name", SERVED)
def test_a_turn_that_is_not_to_be_trained_is_not_learned(name: str) -> None:
    messages = chat(3)
    messages[3] = messages[3] | {"train": False}
    check(learned(SHIPPED[name], messages), "Reply 1.", "Reply 3.")


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "qwen3": ["<think>\n\n</think>\n\nReply 1.<|im_end|>\n", "<think>\n\n</think>\n\nReply 2.<|im_end|>\n"],
        "deepseek_r1_distill": ["Reply 1.<｜end▁of▁sentence｜>", "Reply 2.<｜end▁of▁sentence｜>"],
        "deepseekv3": ["Reply 1.<｜end▁of▁sentence｜>", "Reply 2.<｜end▁of▁sentence｜>"],
        "gptoss": ["<|channel|>final<|message|>Reply 1.<|end|>", "<|channel|>final<|message|>Reply 2.<|return|>"],
        "glm4moe": ["\n<think></think>\nReply 1.<|user|>", "\n<think></think>\nReply 2.<|user|>"],
        "phi3": ["Reply 1.<|end|>\n", "Reply 2.<|end|>\n</s>"],
        "nemotron_3_nano": ["</think>Reply 1.<|im_end|>\n", "</think>Reply 2.<|im_end|>\n"],
        "qwen3_5_think": ["\n</think>\n\nReply 1.<|im_end|>\n", "\n</think>\n\nReply 2.<|im_end|>\n"],
    }.items(),
)
def test_templates_that_rewrite_earlier_turns_are_learned_as_generated(name: str, expected: list[str]) -> None:
    assert learned(SHIPPED[name], chat(2)) == expected


MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>"
    "{% generation %}{{ m.content }}{% endgeneration %}<|end|>"
    "{% else %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_the_end_of_a_turn_is_learned_though_the_markers_leave_it_out() -> None:
    assert learned(MARKED, chat(2)) == ["Reply 1.<|end|>", "Reply 2.<|end|>"]


def test_an_unmarked_turn_is_refused() -> None:
    template = MARKED.replace("m.role == 'assistant'", "m.role == 'assistant' and loop.last")
    with pytest.raises(Failure, match="its generation markers do not mark message 2") as caught:
        learned(template, chat(2))
    assert caught.value.field == "spec.dataset.assistantOnlyLoss"


def test_a_chat_that_begins_with_the_assistant_has_its_header_left_out() -> None:
    greeting = [{"role": "assistant", "content": "Good day."}, *chat(1)]
    assert learned(SHIPPED["qwen2_5"], greeting)[0] == "Good day.<|im_end|>\n"
    assert learned(MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", ""), greeting) == [
        "Good day.<|end|>",
        "Reply 1.<|end|>",
    ]


def test_the_whole_conversation_is_learned_where_that_is_asked_for() -> None:
    (conversation,) = learned(SHIPPED["qwen3"], chat(2), assistant_only_loss=False)
    assert conversation == str(tokenizer_of(SHIPPED["qwen3"]).apply_chat_template(chat(2), tokenize=False))
    untrained = chat(2)
    untrained[1] = untrained[1] | {"train": False}
    first, rest = learned(SHIPPED["qwen2_5"], untrained, assistant_only_loss=False)
    assert first.endswith("<|im_start|>assistant\n")
    assert rest.startswith("<|im_start|>user\nQuestion 2?")


def test_a_template_that_fails_in_any_way_refuses_the_row() -> None:
    for broken in ("{{ messages[0].content + 1 }}", "{{ 1 // 0 }}", "{{ raise_exception('Never.') }}"):
        with pytest.raises(Failure, match="the model's chat template refuses it"):
            learned(broken, chat(1))


@pytest.mark.parametrize("broken", ["{% if %}", "{{ messages | shorten }}"])
def test_a_template_that_is_no_jinja_is_the_models_fault(broken: str) -> None:
    with pytest.raises(Failure, match="chat template is no Jinja template") as caught:
        learned(broken, chat(1))
    assert (caught.value.reason, caught.value.field) == (Reason.MODEL_UNSUPPORTED, "spec.model.uri")


@pytest.mark.parametrize("text", ["Hello.", "<s>Hello.", "<s>Hello.</s>"])
def test_no_special_token_is_doubled_though_the_tokenizer_adds_both(text: str) -> None:
    from copy import deepcopy

    from tokenizers import processors

    tokenizer = deepcopy(tokenizer_of(""))
    ends = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B", special_tokens=ends
    )
    ((_, row),) = Encoder(tokenizer, "text", 99, Counts()).encode([{"text": text}])
    assert tokenizer.decode(row["input_ids"]) == "<s>Hello.</s>"
    pair = {"prompt": text.removesuffix("</s>"), "completion": "Bye."}
    ((_, row),) = Encoder(tokenizer, "promptCompletion", 99, Counts()).encode([pair])
    assert tokenizer.decode(row["input_ids"]) == "<s>Hello.Bye.</s>"
    assert tokenizer.decode([label for label in row["labels"] if label != IGNORED]) == "Bye.</s>"
