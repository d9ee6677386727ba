"""Becoming part of a Ray cluster: one at an address, the one this machine is in, or one started here."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from typing import Any

from ..errors import RequestError

_CONNECT_S = 10.0
_ANSWER_S = 30.0  # the check is a process of its own, which a busy machine takes long to start
_STORE_BYTES = 100 * 2**20  # of a cluster that is started here: only results of a few lines travel


def join(ray: Any, address: str | None) -> None:
    """Become a driver of the cluster; without one, start it on this machine.

    Args:
        ray: The module.
        address: Host and port of the cluster's head; None: where ``RAY_ADDRESS`` says, or this machine's.

    Raises:
        RequestError: it is no address, no cluster answers there, or Ray cannot join it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None and address not in ("auto", "local"):
        _check_address(address)
    try:
        if address is None:
            try:
                ray.init(address="auto", **quiet)
            except ConnectionError:
                ray.init(address="local", include_dashboard=False, object_store_memory=_STORE_BYTES, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (Exception, SystemExit) as error:
        where = address or "this machine"
        raise RequestError(f"cannot join the Ray cluster at {where}: {last_line(error)}") from error


def _check_address(address: str) -> None:
    """Refuse an address at which no cluster answers, before Ray waits for it for more than a minute."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise RequestError(
            f"--address takes host and port of the cluster's head, such as 10.0.0.1:6379, not {address!r}; "
            "start the sweep on a machine that `ray start --address` made part of the cluster"
        )
    mend = f"start one there with `ray start --head --port {port}`, or correct --address"
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise RequestError(f"there is no Ray cluster at {address} ({error}); {mend}") from error
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_ANSWER_S, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        done = False
    if not done:
        raise RequestError(f"something answers at {address}, but it is no Ray cluster; {mend}")


def last_line(error: BaseException) -> str:
    """What an error says in the end: Ray puts what matters there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
