"""Write sizes in bytes for people."""


def format_size(number: float) -> str:
    """Write a number of bytes in powers of 1000: ``512 B``, ``4.9 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
