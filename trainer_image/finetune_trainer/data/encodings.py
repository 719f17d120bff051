"""Say in plain words which encoding a file has that is no UTF-8."""

from finetune_trainer.data.compression import damaged_file

UTF8_REMEDY = "save the file as UTF-8 (it may be Latin-1 or Windows-1252)"
BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def refuse_utf16(look: bytes, name: str) -> None:
    """Check that a text is not in UTF-16 or UTF-32.

    Args:
        look: The first bytes of the file.
        name: The file's name for the message.

    Raises:
        Failure: DATASET_INVALID if it is.
    """
    encoding = next((words for mark, words in BYTE_ORDER_MARKS.items() if look.startswith(mark)), None)
    if encoding is None and look[:64].count(0) * 3 >= len(look[:64]) > 0:
        encoding = "UTF-16"
    if encoding:
        raise damaged_file(name, f"is {encoding} text: save it as UTF-8")
