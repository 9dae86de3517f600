"""What clients send by mistake or on purpose: refused at once, with the reason, and nothing of it is kept."""

import gzip
import json
from base64 import urlsafe_b64encode
from time import perf_counter
from typing import Any

import pytest

from tests.integration.checkout.changed_requests import (
    ADDRESS,
    CARD,
    LINE,
    VALID,
    address,
    customer,
    has_card,
    headers,
    lines,
    post,
    refused,
    wanting,
)
from tests.integration.checkout.conftest import API_KEY, OPS_KEY, Shop, body

WRONG_FIELDS: list[tuple[dict[str, Any], str]] = [
    (lines(True), "/lines/0/quantity"),
    (lines("1"), "/lines/0/quantity"),
    (lines(1.5), "/lines/0/quantity"),
    (lines(1.0), "/lines/0/quantity"),
    (lines(0), "/lines/0/quantity"),
    (lines(-1), "/lines/0/quantity"),
    (lines(10**9), "/lines/0/quantity"),
    (lines(2**63), "/lines/0/quantity"),
    (lines(10**400), "/lines/0/quantity"),
    (lines(None), "/lines/0/quantity"),
    ({"lines": []}, "/lines"),
    ({"lines": {"0": LINE}}, "/lines"),
    ({"lines": [[]]}, "/lines/0"),
    ({"lines": [{"sku": f"SKU-{n:04}", "quantity": 1} for n in range(1, 102)]}, "/lines"),
    ({"lines": [{"sku": f"S-{n}", "quantity": 1} for n in range(2000)]}, "/lines"),
    ({"lines": [LINE, {**LINE, "sku": "SKU-0002"}, LINE]}, "/lines/2/sku"),
    ({"lines": [{**LINE, "price": 1}]}, "/lines/0/price"),
    ({"lines": [{**LINE, "unit_price": 1}]}, "/lines/0/unit_price"),
    (wanting("SKU-0001'; --"), "/lines/0/sku"),
    (wanting("../../etc/passwd"), "/lines/0/sku"),
    (wanting("S" * 300), "/lines/0/sku"),
    (wanting(""), "/lines/0/sku"),
    (wanting("SKU-0001\n"), "/lines/0/sku"),
    (wanting(7), "/lines/0/sku"),
    (wanting(["SKU-0001"]), "/lines/0/sku"),
    ({"total": 1}, "/total"),
    ({"amount": 1}, "/amount"),
    ({"status": "completed"}, "/status"),
    ({"tenant": "other"}, "/tenant"),
    ({"__proto__": {}}, "/__proto__"),
    ({"cvv": "123"}, "/cvv"),
    ({"payment_method": {"card": {"number": CARD}}}, "/payment_method"),
    ({"payment_method": ""}, "/payment_method"),
    ({"payment_method": CARD}, "/payment_method"),
    ({"payment_method": "pm_card visa"}, "/payment_method"),
    ({"payment_method": "p" * 256}, "/payment_method"),
    ({"currency": "usd"}, "/currency"),
    ({"currency": "EU"}, "/currency"),
    ({"currency": "XXX"}, "/currency"),
    ({"currency": "XAU"}, "/currency"),
    ({"currency": "ABC"}, "/currency"),
    ({"currency": "EUR "}, "/currency"),
    ({"currency": "EURO"}, "/currency"),
    ({"currency": 978}, "/currency"),
    ({"customer": []}, "/customer"),
    ({"customer": "ann@example.com"}, "/customer"),
    ({"customer": {}}, "/customer/email"),
    (customer(email=None), "/customer/email"),
    (customer(email=""), "/customer/email"),
    (customer(email="ann@example.com\r\nBcc: x@example.com"), "/customer/email"),
    (customer(email="ann@example.com\n"), "/customer/email"),
    (customer(email="ann@bob@example.com"), "/customer/email"),
    (customer(email="a" * 400 + "@example.com"), "/customer/email"),
    (customer(email="ann@" + "a" * 64 + ".com"), "/customer/email"),
    (customer(email="ann@example..com"), "/customer/email"),
    (customer(email="ann@-example.com"), "/customer/email"),
    (customer(email="ann@"), "/customer/email"),
    (customer(email="Ann <ann@example.com>"), "/customer/email"),
    (customer(email='"a\r\nBcc: x" <ann@example.com>'), "/customer/email"),
    (customer(email="ann@exam\u202eple.com"), "/customer/email"),
    (customer(name="Ann\r\nBcc: x@example.com"), "/customer/name"),
    (customer(name="Ann\u0085Bcc: x@example.com"), "/customer/name"),
    (customer(name="Ann\u2028Bcc: x@example.com"), "/customer/name"),
    (customer(name="Ann \u202egnp.exe"), "/customer/name"),
    (customer(name="A" * 201), "/customer/name"),
    (customer(name=""), "/customer/name"),
    (customer(phone="1"), "/customer/phone"),
    (address(country="de"), "/shipping_address/country"),
    (address(country="Germany"), "/shipping_address/country"),
    (address(postal_code="1" * 21), "/shipping_address/postal_code"),
    (address(city=None), "/shipping_address/city"),
    (address(line1="x\u2066y"), "/shipping_address/line1"),
    ({"shipping_address": [ADDRESS]}, "/shipping_address"),
    ({"expected_total": "200"}, "/expected_total"),
    ({"expected_total": True}, "/expected_total"),
    ({"expected_total": -1}, "/expected_total"),
    ({"expected_total": 2**63}, "/expected_total"),
    ({"metadata": []}, "/metadata"),
    ({"metadata": {"cart": 42}}, "/metadata/cart"),
    ({"metadata": {"cart": {"id": "42"}}}, "/metadata/cart"),
    ({"metadata": {"cart": "x" * 501}}, "/metadata/cart"),
    ({"metadata": {str(n): "x" for n in range(51)}}, "/metadata"),
]


async def test_every_field_that_is_wrong_is_pointed_at_and_nothing_is_written(shop: Shop) -> None:
    before = await shop.written()

    for changes, pointer in WRONG_FIELDS:
        refused(await shop.order(**changes), 422, "validation_failed", pointer)

    assert await shop.written() == before


@pytest.mark.parametrize("field", ["customer", "currency", "lines", "payment_method"])
async def test_a_required_field_can_neither_be_left_out_nor_be_null(shop: Shop, field: str) -> None:
    missing = await post(shop, json.dumps({name: value for name, value in body().items() if name != field}))
    null = await post(shop, json.dumps({**body(), field: None}))

    refused(missing, 422, "validation_failed", f"/{field}")
    refused(null, 422, "validation_failed", f"/{field}")


MALFORMED = {
    "not JSON": b"{'customer': 1}",
    "cut off": VALID[:-1].encode(),
    "two documents": (VALID + VALID).encode(),
    "a key twice": VALID[:-1].encode() + b', "currency": "USD"}',
    "NaN": VALID.replace("2}", "NaN}").encode(),
    "Infinity": VALID.replace("2}", "-Infinity}").encode(),
    "beyond a double": VALID.replace("2}", "1e999}").encode(),
    "10,000 arrays deep": b"[" * 10_000 + b"]" * 10_000,
    "10,000 objects deep": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "5,000 digits": VALID.replace("2}", "1" * 5000 + "}").encode(),
    "UTF-16": VALID.encode("utf-16"),
    "UTF-32": VALID.encode("utf-32"),
    "Latin-1": VALID.replace("Ann", "Jürgen").encode("latin-1"),
    "overlong UTF-8": VALID.encode().replace(b"Ann", b"\xc0\xaf"),
    "a surrogate as bytes": VALID.encode().replace(b"Ann", b"\xed\xa0\x80"),
    "a surrogate as an escape": VALID.replace("Ann", "\\ud83d").encode(),
    "NUL as an escape": VALID.replace("Ann", "A\\u0000n").encode(),
    "NUL as a byte": VALID.encode().replace(b"Ann", b"A\x00n"),
    "a byte order mark": b"\xef\xbb\xbf" + VALID.encode(),
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED.keys())
async def test_what_two_readers_could_read_differently_is_no_json(shop: Shop, content: bytes) -> None:
    before = await shop.written()

    refused(await post(shop, content), 400, "malformed_json")

    assert await shop.written() == before


async def test_a_body_is_json_of_at_most_64_kib_and_says_so(shop: Shop) -> None:
    before = await shop.written()
    large = VALID[:-1] + " " * (64 * 1024 + 1 - len(VALID)) + "}"
    bomb = gzip.compress(b" " * 1_000_000)

    refused(await post(shop, large), 413, "body_too_large")
    refused(await post(shop, " " * 1_000_000), 413, "body_too_large")
    refused(await post(shop, bomb, Content_Encoding="gzip"), 415, "unsupported_media_type")
    refused(await post(shop, VALID, Content_Type="text/plain"), 415, "unsupported_media_type")
    refused(await post(shop, VALID, Content_Type=None), 415, "unsupported_media_type")
    refused(await post(shop, "a=b", Content_Type="application/x-www-form-urlencoded"), 415, "unsupported_media_type")
    refused(await post(shop, b""), 422, "validation_failed")
    for other in ("[]", '"order"', "null", "7"):
        refused(await post(shop, other), 422, "validation_failed")

    assert await shop.written() == before
    assert (await post(shop, large[:-2] + "}")).status_code == 201


async def test_prices_come_from_the_catalogue_and_in_its_currency(shop: Shop) -> None:
    await shop.product("DEAR", stock=10_000, price=10**9)
    before = await shop.written()

    refused(await shop.order(currency="CHF"), 422, "currency_mismatch", "/currency")
    refused(await shop.order(currency="JPY"), 422, "currency_mismatch", "/currency")
    refused(await shop.order(expected_total=1), 422, "total_mismatch", "/expected_total")
    refused(await shop.order(**wanting("NO-SUCH")), 422, "unknown_sku", "/lines/0/sku")
    dear = await shop.order(lines=[{"sku": "DEAR", "quantity": 10_000}])
    refused(dear, 422, "total_not_chargeable", "/lines")

    assert await shop.written() == before


@pytest.mark.parametrize("text", ["{{7*7}} ${7*7} #{7}", "<script>alert(1)</script>", "Robert'); DROP TABLE orders;--"])
async def test_text_is_only_text(shop: Shop, text: str) -> None:
    """It is kept and shown as it came: whoever puts it into a page or a mail has to escape it."""
    answer = await shop.order(**customer(name=text), metadata={"note": text}, **address(line2=text))

    order = answer.json()
    assert answer.status_code == 201
    assert order["customer"]["name"] == order["metadata"]["note"] == order["shipping_address"]["line2"] == text
    assert (await shop.get(f"/v1/orders/{order['id']}")).json()["customer"]["name"] == text


@pytest.mark.parametrize("email", ["o'neil+tag@example.co.uk", "ann@bücher.example", "ann@उदाहरण.example", "a@b"])
async def test_unusual_addresses_are_addresses_all_the_same(shop: Shop, email: str) -> None:
    answer = await shop.order(**customer(email=email))

    assert answer.status_code == 201
    assert answer.json()["customer"]["email"] == email


async def test_an_idempotency_key_is_1_to_255_printable_ascii_characters(shop: Shop) -> None:
    before = await shop.written()

    for path in ("/v1/orders", "/v1/products/SKU-0001/stock"):
        content = VALID if path == "/v1/orders" else json.dumps({"delta": 1, "reason": "count"})
        for missing in (None, "", "   "):
            answer = await post(shop, content, path, Idempotency_Key=missing)
            refused(answer, 400, "idempotency_key_missing")
        for wrong in ("k" * 256, '"' + "k" * 256 + '"', '""', "clé", "a\tb"):
            sent = [*headers(Idempotency_Key=None).items(), ("Idempotency-Key", wrong.encode("utf-8"))]
            answer = await shop.http.post(path, content=content, headers=sent)  # type: ignore[arg-type]
            refused(answer, 400, "idempotency_key_invalid")

    assert await shop.written() == before
    assert (await shop.order("k" * 255)).status_code == 201
    assert (await shop.order("k")).status_code == 201


async def test_without_a_valid_key_in_the_header_nothing_opens(shop: Shop) -> None:
    before = await shop.written()
    wrong = ["", "Bearer", "Bearer ", f"Bearer {API_KEY}x", f"Token {API_KEY}", "Bearer " + "k" * 10_000, "Bearer ä"]

    for value in wrong:
        sent = [*headers(Authorization=None).items(), ("Authorization", value.encode())]
        answer = await shop.http.post("/v1/orders", content=VALID, headers=sent)  # type: ignore[arg-type]
        refused(answer, 401, "unauthenticated")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    for path in ("/v1/orders", "/v1/products", "/v1/orders/x", "/ops/subscriptions", "/ops/events?order_id=x"):
        answer = await shop.http.get(path, params={"api_key": API_KEY, "access_token": API_KEY})
        refused(answer, 401, "unauthenticated")
    answer = await shop.http.get(f"/v1/orders?api_key={API_KEY}", headers={"Cookie": f"key={API_KEY}"})
    refused(answer, 401, "unauthenticated")
    for head in ({"alg": "none"}, {"alg": "HS256", "kid": "' OR 1=1 --"}, {"alg": "RS256", "kid": "../key_demo"}):
        parts = (head, {"sub": "demo", "aud": "checkout", "exp": 1, "nbf": 2**33})
        jwt = ".".join(urlsafe_b64encode(json.dumps(part).encode()).decode() for part in parts)
        refused(await post(shop, VALID, Authorization=f"Bearer {jwt}.{'A' * 40}"), 401, "unauthenticated")
    answer = await post(shop, VALID, f"/v1/orders?api_key={API_KEY}&access_token={API_KEY}", Authorization=None)
    refused(answer, 401, "unauthenticated")

    assert await shop.written() == before


@pytest.mark.parametrize(
    "order_id",
    ["x", "ord_", "ord_" + "0" * 26, "ord_" + "0" * 27, "1", "-1", "..", "ord_%00", "%ff", "é", "ord_' OR 1=1 --"],
)
async def test_an_id_that_is_none_is_not_found(shop: Shop, order_id: str) -> None:
    refused(await shop.get(f"/v1/orders/{order_id}"), 404, "not_found")


async def test_ids_are_exact(shop: Shop) -> None:
    order_id = (await shop.order()).json()["id"]

    for other in (order_id.upper(), order_id + " ", order_id[4:], f"{order_id}/", f"/{order_id}"):
        refused(await shop.get(f"/v1/orders/{other}"), 404, "not_found")


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        *[(f"/v1/{what}?limit={n}", "/limit") for what in ("orders", "products") for n in (0, -1, 101, "1e9", "x", "")],
        (f"/v1/orders?limit={'9' * 5000}", "/limit"),
        ("/v1/orders?starting_after=x", "/starting_after"),
        ("/v1/orders?starting_after=", "/starting_after"),
        ("/v1/orders?starting_after=ord_' OR 1=1", "/starting_after"),
        (f"/v1/products?starting_after={'x' * 65}", "/starting_after"),
        ("/v1/orders?status=paid", "/status"),
        ("/v1/orders?status=", "/status"),
        (f"/v1/orders?idempotency_key={'k' * 256}", "/idempotency_key"),
        ("/v1/orders?created_gte=yesterday", "/created_gte"),
        ("/v1/orders?created_gte=2026-01-01T00:00:00", "/created_gte"),
        ("/v1/orders?created_gte=1e400", "/created_gte"),
        ("/v1/orders?created_gte=0.5", "/created_gte"),
        ("/v1/orders?created_gte=0001-01-01T00:00:00%2B23:00", "/created_gte"),
        ("/v1/orders?created_gte=9999-12-31T23:59:59-23:00", "/created_gte"),
    ],
)
async def test_a_list_is_asked_for_in_the_words_of_the_contract(shop: Shop, path: str, pointer: str) -> None:
    refused(await shop.http.get(path, headers=headers()), 422, "validation_failed", pointer)


async def test_a_nul_in_a_query_is_refused_before_the_database_sees_it(shop: Shop) -> None:
    answer = await shop.http.get("/v1/products?starting_after=%00", headers=headers())

    refused(answer, 400, "malformed_query")


@pytest.mark.parametrize("sku", ["S" * 300, "a b", "'; --", "..%2f..", ".hidden", "é", CARD, "%00", "a%0ab"])
async def test_a_product_gets_no_sku_that_an_order_could_not_name(shop: Shop, sku: str) -> None:
    before = await shop.row("SELECT count(*) FROM products")

    product = json.dumps({"name": "x", "unit_price": 1, "currency": "EUR"})
    answer = await shop.http.put(f"/v1/products/{sku}", content=product, headers=headers())

    assert answer.status_code in {404, 422}
    refused(answer, answer.status_code, answer.json()["code"])
    assert not has_card(answer.text)
    assert await shop.row("SELECT count(*) FROM products") == before


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"unit_price": -1}, "/unit_price"),
        ({"unit_price": 1.5}, "/unit_price"),
        ({"unit_price": "1"}, "/unit_price"),
        ({"unit_price": 2**63}, "/unit_price"),
        ({"currency": "eur"}, "/currency"),
        ({"currency": "XXX"}, "/currency"),
        ({"currency": "ABC"}, "/currency"),
        ({"currency": 978}, "/currency"),
        ({"name": ""}, "/name"),
        ({"name": "a\nb"}, "/name"),
        ({"sku": "OTHER"}, "/sku"),
        ({"available": 1}, "/available"),
    ],
)
async def test_a_product_is_checked_like_an_order(shop: Shop, changes: dict[str, object], pointer: str) -> None:
    product = json.dumps({"name": "x", "unit_price": 1, "currency": "EUR", **changes})

    answer = await shop.http.put("/v1/products/NEW-1", content=product, headers=headers())

    refused(answer, 422, "validation_failed", pointer)
    refused(await shop.get("/v1/products/NEW-1"), 404, "not_found")


@pytest.mark.parametrize("delta", [True, "1", 1.5, 10**9 + 1, -(2**63), None])
async def test_stock_moves_in_whole_units(shop: Shop, delta: object) -> None:
    before = await shop.stock("SKU-0001")

    content = json.dumps({"delta": delta, "reason": "count"})
    answer = await post(shop, content, "/v1/products/SKU-0001/stock")

    refused(answer, 422, "validation_failed", "/delta")
    assert await shop.stock("SKU-0001") == before


@pytest.mark.parametrize(
    "changes",
    [{"name": "Email"}, {"name": ""}, {"name": "a'b"}, {"name": "x" * 41}, {"from": "yesterday"}, {"from": None}],
)
async def test_a_subscription_is_checked_like_an_order(shop: Shop, changes: dict[str, object]) -> None:
    content = json.dumps({"name": "other", "from": "now", **changes})

    answer = await post(shop, content, "/ops/subscriptions", Authorization=f"Bearer {OPS_KEY}")

    refused(answer, 422, "validation_failed", f"/{next(iter(changes))}")
    assert (
        await shop.row("SELECT count(*) FROM subscriptions WHERE service NOT IN ('email','analytics','warehouse')") == 0
    )


async def test_a_method_is_what_the_request_line_says(shop: Shop) -> None:
    before = await shop.written()

    overridden = await shop.http.get("/v1/products", headers=headers(X_HTTP_Method_Override="DELETE"))
    deleted = await shop.http.delete("/v1/orders", headers=headers())
    forged = await post(shop, VALID, "/v1/orders?_method=GET", X_HTTP_Method_Override="GET", Idempotency_Key=None)
    patched = await shop.http.patch("/v1/products/SKU-0001?_method=PUT", content=VALID, headers=headers())

    assert overridden.status_code == 200
    refused(forged, 400, "idempotency_key_missing")
    refused(deleted, 405, "method_not_allowed")
    refused(patched, 405, "method_not_allowed")
    assert {word.strip() for word in patched.headers["Allow"].split(",")} == {"GET", "PUT"}
    assert await shop.written() == before


async def test_refusing_takes_no_time(shop: Shop) -> None:
    """The quickest of three, because the machine may be busy with something else."""
    for content in [
        *MALFORMED.values(),
        b" " * 1_000_000,
        *(json.dumps(body(**one)).encode() for one, _ in WRONG_FIELDS),
    ]:
        took = []
        for _ in range(3):
            started = perf_counter()
            assert (await post(shop, content)).is_client_error
            took.append(perf_counter() - started)
        assert min(took) < 0.05, content[:80]
