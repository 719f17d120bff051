"""``python -m bench``: every benchmark there is."""

import sys

from bench.operator.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
