"""One self-contained HTML page from what the commands wrote."""

from .page import write_report

__all__ = ["write_report"]
