"""The page on a port of this machine, which no other machine can reach."""

from __future__ import annotations

import contextlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOST = "127.0.0.1"
PATIENCE = 30.0
"""Seconds that a connection may keep silent, and that the rest of an answer may take."""


class PageServer(ThreadingHTTPServer):
    """A server of one page, on loopback only; `serve_forever` runs it, and visitors wait for that.

    There is nothing but the page: no file of the machine is read.

    Attributes:
        page: what it answers "/" with.

    Raises:
        ValueError: the port is no port, is taken, or not for us.
    """

    def __init__(self, port: int = 0, page: str = "") -> None:
        """port: 0 takes any that is free."""
        if not 0 <= port < 2**16:
            raise ValueError(f"port must be between 0 and {2**16 - 1}, got {port=}.")
        self.page = page
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise ValueError(
                f"port {port} of {HOST} cannot be used ({error.strerror}); --port 0 takes any "
                "that is free."
            ) from None


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version, sys_version = "foveal", ""
    timeout = PATIENCE

    def handle(self) -> None:
        # a browser that leaves, or goes on to another page, is no mistake
        with contextlib.suppress(ConnectionError, TimeoutError):
            super().handle()

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        if self.path.partition("?")[0] != "/":
            self.send_error(404, "there is one page, at /")
            return
        content = self.server.page.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal says where the page is, and that is all."""
