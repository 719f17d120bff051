"""Read which turns of a chat are learned, as OpenAI, Axolotl and ms-swift write it."""

from typing import Any

from finetune_trainer.data.values import Message, RowError, quote_value

FLAGS = ("weight", "train", "training", "trainable", "train_on_turn", "loss", "loss_weight")
"""Keys of a message that say by 1 or true that it is learned, by 0 or false that it is not."""
OTHER_FLAGS = ("mask", "masked", "loss_mask", "loss_scale", "train_detail", "train_ratio")
"""Keys of a message by which other trainers choose what is learned in ways that this one does not know."""
MEANINGS: dict[Any, bool] = {1: True, 0: False, "1": True, "0": False, "true": True, "false": False}


def read_flag(message: Message, location: str) -> bool | RowError | None:
    """Return whether a message says that it is learned; None if it says nothing."""
    if unknown_flag := next((key for key in OTHER_FLAGS if key in message), None):
        return RowError(
            f"{location} has the key {unknown_flag!r}, which the trainer does not know: is the turn to be learned? "
            "Write train: true or train: false"
        )
    by_key = {key: _read_meaning(message[key]) for key in FLAGS if key in message}
    if wrong := next((key for key, meaning in by_key.items() if meaning is None), None):
        return RowError(
            f"{location} has {wrong} {quote_value(message[wrong])}: is the turn to be learned? "
            "The trainer learns a turn or not, so write 1 or 0"
        )
    meanings = set(by_key.values())
    if len(meanings) > 1:
        return RowError(f"{location} has {' and '.join(by_key)}, which contradict one another: keep one of them")
    flag = next(iter(meanings), None)
    if flag and message["role"] != "assistant":
        return RowError(
            f"{location} is of the role {message['role']} and marked as learned ({', '.join(by_key)}), but only "
            "turns of the assistant are learned: remove the mark"
        )
    return flag


def _read_meaning(value: Any) -> bool | None:
    key = value.strip().lower() if isinstance(value, str) else value
    return MEANINGS.get(key) if isinstance(key, str | int | float) else None
