"""Texts that messages of ours quote."""

from finetune_api.limits import QUOTE_CHARACTERS, quote


def test_a_quoted_text_is_one_line_of_limited_length() -> None:
    assert quote(" <html>\n  not found\t") == "<html> not found"
    cut = quote("word " * 100)
    assert len(cut) == QUOTE_CHARACTERS
    assert cut.endswith("…")
