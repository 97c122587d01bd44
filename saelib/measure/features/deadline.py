"""Requests that end at their time, whatever a host still sends.

A socket's own timeout begins anew with each byte: a host that sends one now and then, or "100
Continue" for ever, would never be left.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from http.client import HTTPConnection, HTTPResponse
from threading import Timer
from typing import Any
from urllib.request import BaseHandler, HTTPHandler, HTTPSHandler, Request

AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: nothing waits, closing resets the connection


class Deadline:
    """A time for all connections that are made in its `with` block; past it they end.

    is_over: whether the time has passed.
    """

    def __init__(self, seconds: float | int) -> None:
        self.is_over = False
        self._sockets: list[socket.socket] = []
        self._timer = Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        for held in self._sockets:
            held.close()

    def handlers(self) -> list[BaseHandler]:
        """For `build_opener`, in the place of its own."""
        return [_Plain(self), _Secure(self)]

    def connect(self, *address: Any, **options: Any) -> socket.socket:
        """As `socket.create_connection`.

        Raises:
            TimeoutError: the time has passed.
        """
        connected = socket.create_connection(*address, **options)
        self._sockets.append(connected.dup())  # TLS takes over the other
        if self.is_over:
            raise TimeoutError
        return connected

    def _end(self) -> None:
        self.is_over = True
        for held in self._sockets:
            with suppress(OSError):  # of a connection that has ended
                # A host that floods waits for room; after a mere shutdown it is never told of any.
                held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
                held.shutdown(socket.SHUT_RDWR)


class _Timed:
    """A handler of urllib whose connections a deadline makes; before one of urllib's classes."""

    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self.deadline = deadline

    def do_open(self, http_class: Any, req: Request, **options: Any) -> HTTPResponse:
        def connection(host: str, **settings: Any) -> HTTPConnection:
            made = http_class(host, **settings)
            made._create_connection = self.deadline.connect
            return made

        return super().do_open(connection, req, **options)


class _Plain(_Timed, HTTPHandler):
    """Of http."""


class _Secure(_Timed, HTTPSHandler):
    """Of https."""
