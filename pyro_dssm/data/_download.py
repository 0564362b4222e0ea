"""What a server sends, received within limits of size and time."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from typing import IO, BinaryIO

__all__ = ["download"]

_CHUNK = 1 << 16


def download(url: str, file: BinaryIO, max_bytes: int, timeout: float) -> None:
    """Copies the answer of a server to a file; every failure becomes a sentence with the address.

    The limits of sockets hold for each step by itself, and a server that sends a byte now and then meets them for ever.
    So another thread does the talking, and at the deadline this one hangs up, whatever that is busy with.
    """
    transfer = _Transfer(url, file, max_bytes, timeout)
    thread = threading.Thread(target=transfer.run, name=f"fetch {url}", daemon=True)
    thread.start()
    try:
        thread.join(min(timeout, threading.TIMEOUT_MAX))
        finished = not thread.is_alive()
    finally:
        transfer.hang_up()
    error: Exception | None = transfer.error
    if not finished or isinstance(getattr(error, "reason", error), TimeoutError):
        received = f"{transfer.received} bytes received"
        raise OSError(f"could not download {url}: not complete after {timeout:g} seconds (timed out), {received}")
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        raise OSError(f"could not download {url}: the server answered {error.code} {error.reason}") from error
    if isinstance(error, _Refused):
        raise error
    if error is not None:  # of the system, or what a server sets off that speaks something else
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise OSError(f"could not download {url}: {reason}") from error


class _Refused(ValueError):
    """What a server sends, and is not taken."""


class _Transfer:
    """Receives a file, in a thread of its own."""

    def __init__(self, url: str, file: BinaryIO, max_bytes: int, timeout: float) -> None:
        self.url, self.file, self.max_bytes, self.timeout = url, file, max_bytes, timeout
        self.received = 0
        self.error: Exception | None = None
        self.sockets: list[socket.socket] = []
        self.over = False

    def run(self) -> None:
        """Receives all of it; what goes wrong is kept for the thread that waits."""
        try:
            self._receive()
        except Exception as error:
            self.error = error

    def hang_up(self) -> None:
        """Ends whatever the connections wait for."""
        self.over = True
        for connected in list(self.sockets):
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)

    def _receive(self) -> None:
        with _opener(self.sockets).open(self.url, timeout=self.timeout) as response:
            declared = _declared_size(response)
            _check_size(self.url, declared or 0, self.max_bytes)
            while not self.over and (chunk := response.read1(_CHUNK)):
                self.received += len(chunk)
                _check_size(self.url, self.received, self.max_bytes)
                if not self.over:
                    self.file.write(chunk)
        if declared is not None and self.received != declared:
            raise ConnectionError(f"the server promised {declared} bytes and sent {self.received}")


def _opener(sockets: list[socket.socket]) -> urllib.request.OpenerDirector:
    """Opens http and https, and nothing else that urllib knows; keeps the sockets at hand."""

    class Plain(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            sockets.append(self.sock)

    class Secure(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            sockets.append(self.sock)

    class Http(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Plain, req)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Secure, req, context=ssl.create_default_context())

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
        Http(),
        Https(),
    ):
        opener.add_handler(handler)
    return opener


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a server to other addresses of http and https alone."""

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage
    ) -> object:
        """Looks where it leads first."""
        target = urllib.parse.urljoin(req.full_url, headers.get("location") or headers.get("uri") or "")
        if not target.lower().startswith(("http://", "https://")):
            fp.close()
            raise _Refused(f"url: expected http:// or https://, got {target[:200]!r}, to which {req.full_url} leads.")
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _declared_size(response: http.client.HTTPResponse) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 20 else None


def _check_size(url: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise _Refused(f"max_bytes is {max_bytes}, but {url} sends at least {size} bytes")
