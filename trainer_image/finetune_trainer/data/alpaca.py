"""Turn a row with an instruction into a chat, or into the prompt of Stanford's Alpaca."""

from finetune_trainer.data.values import Message, Row

PREFACE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
PREFACE_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
TURN = "### Instruction:\n{instruction}\n\n### Response:\n"
TURN_WITH_INPUT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"


def to_messages(row: Row) -> list[Message]:
    """Return the chat of a row: its system prompt, the turns of its history, its instruction, and its output."""
    question_text = f"{row['instruction']}\n\n{row['input']}" if row["input"].strip() else row["instruction"]
    turns = [{"role": "system", "content": row["system"]}] if "system" in row else []
    for question, answer in [*row.get("history", []), (question_text, row["output"])]:
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return turns


def to_prompt(row: Row) -> str:
    """Return the prompt for models without a chat template; a system prompt replaces Alpaca's first sentences."""
    has_input = bool(row["input"].strip())
    preface = row.get("system", PREFACE_WITH_INPUT if has_input else PREFACE)
    before = "".join(f"{TURN.format(instruction=q)}{answer}\n\n" for q, answer in row.get("history", []))
    turn = TURN_WITH_INPUT if has_input else TURN
    return f"{preface}\n\n{before}{turn.format(instruction=row['instruction'], input=row['input'])}"
