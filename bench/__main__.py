"""Run the operator's benchmark. ``python -m bench.trainer`` runs the trainer's, which takes longer."""

import sys

from bench.operator.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
