"""A hub of this machine's own, which has nothing: it refuses as the real one does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GATED = "gated"  # what the id of a gated repository holds


class _Refuses(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        gated = GATED in self.path
        # How huggingface_hub's client tells one refusal from another.
        if self.path != "/":
            self.send_response(401)
            self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
            self.send_header("X-Error-Message", "Access is restricted" if gated else "Repository not found")
        else:
            self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_HEAD

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


@contextmanager
def refusing_hub() -> Iterator[str]:
    """The address of the hub, while it runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refuses)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
