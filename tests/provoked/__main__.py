"""``python -m tests.provoked``: provoke every failure and write what each printed into docs/errors.md."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from hessian_lr.atomic import write_bytes
from tests.provoked.failures import FAILURES
from tests.provoked.page import PAGE, with_tables
from tests.provoked.running import provoking


def main() -> None:
    with provoking() as provoke:
        said = {one: provoke(one).stderr for group in FAILURES.values() for one in group}
    write_bytes(PAGE, with_tables(PAGE.read_text(encoding="utf-8"), said).encode())


if __name__ == "__main__":
    main()
