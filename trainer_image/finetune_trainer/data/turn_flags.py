"""Read which turns of a chat are learned, in the notations of OpenAI, Axolotl and ms-swift."""

from typing import Any

from finetune_trainer.data.values import Message, RowError, quote_value

FLAGS = ("weight", "train", "training", "trainable", "train_on_turn", "loss", "loss_weight")
"""Keys of a message that is learned if the value is 1 or true, and not learned if it is 0 or false."""
OTHER_FLAGS = ("mask", "masked", "loss_mask", "loss_scale", "train_detail", "train_ratio")
"""Keys with which other trainers choose what is learned, and which this trainer does not support."""
MEANINGS: dict[Any, bool] = {1: True, 0: False, "1": True, "0": False, "true": True, "false": False}


def read_flag(message: Message, location: str) -> bool | RowError | None:
    """Return whether a message says that it is learned; None if it says nothing."""
    if unknown_flag := next((key for key in OTHER_FLAGS if key in message), None):
        return RowError(
            f"{location} has the key {unknown_flag!r}, which the trainer does not support: write train: true to learn "
            "the turn, or train: false"
        )
    by_key = {key: _read_meaning(message[key]) for key in FLAGS if key in message}
    if unclear := next((key for key, meaning in by_key.items() if meaning is None), None):
        return RowError(
            f"{location} has {unclear} {quote_value(message[unclear])}: write 1 to learn the turn, or 0 to leave it out"
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
