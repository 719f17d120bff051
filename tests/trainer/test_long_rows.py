"""A row of any length is cut before it is tokenized, and counted."""

from typing import Any

import pytest

from finetune_api.data_counts import Counts
from finetune_trainer.data.tokens import CHARACTERS_PER_TOKEN, Encoder

pytestmark = pytest.mark.unit


class WordTokenizer:
    """A tokenizer of which each word is a token; it remembers the longest text that it got."""

    bos_token_id, eos_token_id, chat_template, is_fast, longest = None, 0, None, True, 0

    def get_added_vocab(self) -> dict[str, int]:
        return {}

    def decode(self, token: int) -> str:
        return "." if token == self.eos_token_id else f"word{token}"

    def __call__(self, texts: list[str], **_: Any) -> dict[str, Any]:
        self.longest = max(self.longest, *map(len, texts))
        return {"input_ids": [list(range(1, len(text.split()) + 1)) for text in texts]}


def test_a_row_of_24_megabytes_is_cut_before_it_is_tokenized() -> None:
    tokenizer, counts = WordTokenizer(), Counts()
    rows = [{"text": "a short row"}, {"text": "many words here " * 1_500_000}]
    sequences = [sequence["input_ids"] for _, sequence in Encoder(tokenizer, "text", 256, counts).encode(rows)]
    assert [len(ids) for ids in sequences] == [4, 256]
    assert tokenizer.longest == 256 * CHARACTERS_PER_TOKEN
    assert (counts.truncated, counts.dropped) == (1, 0)
