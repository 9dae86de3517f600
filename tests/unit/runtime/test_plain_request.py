"""Which requests may be answered unread: only those whose end is beyond doubt."""

import pytest

from shared.runtime.plain_request import PlainRequest

FIRST = b"POST /v1/orders HTTP/1.1\r\n"


def request(*headers: str, body: bytes = b"{}") -> bytes:
    return FIRST + "".join(f"{header}\r\n" for header in headers).encode("latin-1") + b"\r\n" + body


def test_a_plain_request_is_known_with_its_id() -> None:
    data = request("Host: shop", "X-Request-ID: r-1", "content-length:2", "Connection: keep-alive")

    found = PlainRequest.found_in(data, FIRST)

    assert found == PlainRequest(head_bytes=len(data) - 2, headers=4, request_id=b"r-1")


@pytest.mark.parametrize(
    "data",
    [
        request("Host: shop", "Content-Length: 2").replace(b"POST", b"PUT", 1),
        request("Host: shop", "Content-Length: 2").replace(b"/orders ", b"/orders/ "),
        request("Host: shop", "Content-Length: 2").replace(b"HTTP/1.1", b"HTTP/1.0"),
        request("Host: shop", "Content-Length: 3"),
        request("Host: shop", "Content-Length: 1"),
        request("Host: shop", "Content-Length: 2", "Content-Length: 2"),
        request("Host: shop", "Content-Length: 2", "Content-Length : 3"),
        request("Host: shop", "Content-Length: 2", "Content-Length: 2x"),
        request("Host: shop", "Content-Length: +2"),
        request("Host: shop", "Content-Length: 2, 2"),
        request("Content-Length: 2", "Transfer-Encoding: chunked"),
        request("Transfer-Encoding: chunked", "Content-Length: 2"),
        request("Content-Length: 2", "TRANSFER-ENCODING: identity"),
        request("Content-Length: 2", "Expect: 100-continue"),
        request("Content-Length: 2", "Upgrade: h2c", "Connection: keep-alive"),
        request("Content-Length: 2", "Connection: close"),
        request("Connection: keep-alive, close", "Content-Length: 2"),
        request("Content-Length: 2", "Folded: a\r\n b"),
        request("Content-Length: 2", "No colon"),
        request("Content-Length: 2", "Bad name: x"),
        request("Content-Length: 2", "Nul: \x00"),
        request("Content-Length: 2", "Return: a\rb"),
        request("Host: shop"),
        request(),
        request("Host: shop", "Content-Length: 2")[:-3],
        request("Host: shop", "Content-Length: 2") * 2,
        FIRST,
        b"",
    ],
    ids=range(28),
)
def test_in_any_doubt_it_is_left_to_the_parser(data: bytes) -> None:
    assert PlainRequest.found_in(data, FIRST) is None
