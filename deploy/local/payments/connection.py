"""uvicorn's HTTP protocol, with a way to reset the connection instead of answering."""

import socket
import struct
from collections.abc import Callable
from typing import Any, cast

from starlette.types import Scope
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

RESET = "orderstream.reset"
LINGER_0 = struct.pack("ii", 1, 0)


class ResettableProtocol(HttpToolsProtocol):
    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)[RESET] = self.reset

    def reset(self) -> None:
        """The peer sees ECONNRESET: with a linger of 0 closing sends RST, abort() alone may send FIN."""
        connection = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        self.transport.abort()


def reset_of(scope: Scope) -> Callable[[], None]:
    reset: Callable[[], None] = scope[RESET]
    return reset
