"""``python -m bench``: the operator's benchmark. The trainer's, which takes longer, is ``python -m bench.trainer``."""

import sys

from bench.operator.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
