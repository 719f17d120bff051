"""Recognise text in UTF-16 or UTF-32, and refuse it with a remedy."""

from finetune_trainer.data.compression import damaged_file

UTF8_REMEDY = "save the file as UTF-8 (it may be Latin-1 or Windows-1252)"
BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def refuse_utf16(start: bytes, name: str) -> None:
    """Check that a text is not in UTF-16 or UTF-32.

    Args:
        start: The first bytes of the file.
        name: The file's name for the message.

    Raises:
        Failure: DATASET_INVALID: the text is in one of them.
    """
    encoding = next((words for mark, words in BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)
    if encoding is None and start[:64].count(0) * 3 >= len(start[:64]) > 0:
        encoding = "UTF-16"
    if encoding:
        raise damaged_file(name, f"is {encoding} text: save it as UTF-8")
