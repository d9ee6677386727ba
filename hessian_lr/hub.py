"""Calling the model and data libraries: their chatter silenced, their network's absence noticed at once."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator

PROBE_SECONDS = 5.0


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Silence the libraries' progress bars, log lines and warnings; put every switch back afterwards."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    verbosity, bars, hub_verbosity = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        hub_logging.get_verbosity(),
    )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub_logging.set_verbosity(hub_logging.ERROR)
    try:
        # Some bars (GGUF's) heed no switch; they do write to whatever standard error is now.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            logging.enable_progress_bar()


def reachable() -> bool:
    """Whether the hub answers within seconds (its own client retries for most of a minute)."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception:  # whatever the client's HTTP library raises, nobody answered
        return False
    return True


@contextlib.contextmanager
def status(message: str, quiet: bool) -> Iterator[None]:
    """A spinner on standard error while the body runs, if somebody is looking at a terminal."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    # The stream is named here, so that ``silenced`` inside the body does not swallow the spinner.
    with Console(file=sys.stderr).status(message):
        yield


def first_line(error: BaseException) -> str:
    """An exception's first line without its end mark, or its type where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(" .:") if text else type(error).__name__
