"""Recognise pointers of Git LFS, which a clone has in place of large files."""

POINTER_START = b"version https://git-lfs.github.com/spec/"
POINTER_REMEDY = "is a pointer of Git LFS, not the file itself: run git lfs pull, or download the file again"


def is_pointer(start: bytes) -> bool:
    """Return whether a file that begins with these bytes is a pointer."""
    return start.startswith(POINTER_START)
