"""``python -m hessian_lr``, which torchrun can start."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
