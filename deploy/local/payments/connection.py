"""uvicorn's HTTP protocol, with a way to reset the connection instead of answering."""

import socket
import struct
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

RESET = "orderstream.reset"
LINGER_0 = struct.pack("ii", 1, 0)


class ResettableProtocol(HttpToolsProtocol):
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[RESET] = self.reset  # type: ignore[typeddict-unknown-key]

    def reset(self) -> None:
        """The peer sees ECONNRESET: with a linger of 0 closing sends RST, where abort() alone may send a tidy FIN."""
        connection = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        self.transport.abort()


def reset_of(scope: Any) -> Callable[[], None]:
    reset: Callable[[], None] = scope[RESET]
    return reset
