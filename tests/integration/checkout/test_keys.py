"""Keys as clients see them: two for a change-over, gone soon after they are revoked, and each with its own limit."""

import asyncio

import pytest

from services.checkout.commands import keys
from services.checkout.commands.keys import REMEMBERED_S, CreateKey, DatabaseKeys, KeyRefused, Scope
from services.checkout.store import keys as stored
from shared.runtime.db import Database
from shared.web.auth import digest
from shared.web.limits import Quota
from tests.integration.checkout.changed_requests import VALID, post, refused
from tests.integration.checkout.conftest import Shop

QUOTA = Quota(rate=1000, burst=1000)


async def created(shop: Shop, tenant: str, *scopes: Scope, quota: Quota | None = None) -> tuple[str, str]:
    """The id of a new key, and the key."""
    command = CreateKey(tenant, scopes or (Scope.ORDERS_READ, Scope.ORDERS_WRITE), quota, "test")
    made, key = await keys.create(shop.db, command)
    return made.id, key


async def test_a_client_changes_its_key_without_a_moment_in_which_none_works(shop: Shop) -> None:
    old_id, old = await created(shop, "changing")
    order_id = (await shop.order(api_key=old)).json()["id"]

    _, new = await created(shop, "changing")
    both = [await shop.get(f"/v1/orders/{order_id}", api_key=key) for key in (old, new)]
    await keys.revoke(shop.db, old_id, "test")
    with_new = await shop.get(f"/v1/orders/{order_id}", api_key=new)

    assert [answer.status_code for answer in both] == [200, 200]
    assert with_new.status_code == 200


async def test_a_key_belongs_to_its_client_and_so_do_its_idempotency_keys(shop: Shop) -> None:
    _, old = await created(shop, "one-client")
    _, new = await created(shop, "one-client")
    first = await shop.order("of-the-client", api_key=old)

    again = await shop.order("of-the-client", api_key=new)
    of_another = await shop.order("of-the-client")

    assert again.json() == first.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    assert of_another.status_code == 201
    assert of_another.json()["id"] != first.json()["id"]


async def test_a_third_key_is_refused_until_one_of_the_two_is_revoked(shop: Shop) -> None:
    first_id, _ = await created(shop, "third")
    second_id, _ = await created(shop, "third")

    with pytest.raises(KeyRefused, match=f"third has 2 active keys \\({first_id}, {second_id}\\): revoke one"):
        await created(shop, "third")

    await keys.revoke(shop.db, first_id, "test")
    _, third = await created(shop, "third")
    assert (await shop.get("/v1/orders", api_key=third)).status_code == 200


async def test_ten_keys_asked_for_at_once_are_two_all_the_same(shop: Shop, checkout_database: str) -> None:
    """Of a client that is new, so that there is no row yet that could be locked."""
    several = Database(checkout_database, "test", pool_size=10)
    command = CreateKey("crowd", (Scope.ORDERS_READ,), None, "test")

    made = await asyncio.gather(*(keys.create(several, command) for _ in range(10)), return_exceptions=True)
    await several.close()

    assert sum(isinstance(one, KeyRefused) for one in made) == 8
    assert await shop.row("SELECT count(*) FROM api_keys WHERE tenant_id = 'crowd'") == 2


async def test_a_revoked_key_is_refused_after_the_promised_seconds_at_the_latest(shop: Shop) -> None:
    now = 1000.0
    known = DatabaseKeys(shop.db, QUOTA, lambda: now)
    key_id, key = await created(shop, "revoked")
    assert await known.find(key)

    await keys.revoke(shop.db, key_id, "test")
    now += REMEMBERED_S - 0.001
    remembered = await known.find(key)
    now += 0.001

    assert remembered is not None, "it is not asked for at every request"
    assert await known.find(key) is None
    assert REMEMBERED_S == 5  # what operations and orderctl promise


async def test_a_revoked_key_opens_nothing(shop: Shop) -> None:
    key_id, key = await created(shop, "shut-out", *Scope)
    await keys.revoke(shop.db, key_id, "test")

    for path in ("/v1/orders", "/v1/products", "/v1/orders/none", "/ops", "/ops/subscriptions"):
        refused(await shop.get(path, api_key=key), 401, "unauthenticated")
    refused(await post(shop, VALID, Authorization=f"Bearer {key}"), 401, "unauthenticated")


async def test_what_is_revoked_stays_revoked_and_says_who_and_when(shop: Shop) -> None:
    key_id, _ = await created(shop, "audited")

    revoked = await keys.revoke(shop.db, key_id, "ann")

    assert (revoked.created_by, revoked.revoked_by) == ("test", "ann")
    assert revoked.revoked_at is not None
    assert revoked.revoked_at > revoked.created_at
    for unknown in (key_id, "key_none", "'; --"):
        with pytest.raises(KeyRefused, match="no active key"):
            await keys.revoke(shop.db, unknown, "bob")


@pytest.mark.parametrize(
    ("scope", "opens"),
    [
        (Scope.ORDERS_READ, {"GET /v1/orders", "GET /v1/products"}),
        (Scope.ORDERS_WRITE, {"POST /v1/orders"}),
        (Scope.CATALOG_WRITE, {"PUT /v1/products/SKU-0001", "POST /v1/products/SKU-0001/stock"}),
        (
            Scope.OPS,
            {
                "GET /ops",
                "GET /ops/subscriptions",
                "GET /ops/events",
                "GET /ops/partitions",
                "PUT /ops/partitions",
                "POST /ops/subscriptions",
                "DELETE /ops/subscriptions/none",
                "POST /ops/subscriptions/none/rewind",
            },
        ),
    ],
)
async def test_a_key_opens_what_its_scope_says_and_nothing_else(shop: Shop, scope: Scope, opens: set[str]) -> None:
    """An opened one finds nothing wrong with the caller, and then something else with an empty request, or not."""
    _, key = await created(shop, f"scope-{scope.replace(':', '-')}", scope)
    everything = [
        "GET /v1/orders",
        "POST /v1/orders",
        "GET /v1/products",
        "PUT /v1/products/SKU-0001",
        "POST /v1/products/SKU-0001/stock",
        "GET /ops",
        "GET /ops/subscriptions",
        "GET /ops/events",
        "GET /ops/partitions",
        "PUT /ops/partitions",
        "POST /ops/subscriptions",
        "DELETE /ops/subscriptions/none",
        "POST /ops/subscriptions/none/rewind",
    ]

    for call in everything:
        method, path = call.split()
        answer = await shop.http.request(method, path, headers={"Authorization": f"Bearer {key}"})

        if call in opens:
            assert answer.status_code in {200, 404, 422}, call
        else:
            refused(answer, 403, "forbidden")


async def test_a_key_with_a_quota_of_its_own_is_held_to_it(shop: Shop) -> None:
    _, slow = await created(shop, "slow", quota=Quota(rate=0.01, burst=2))
    _, other = await created(shop, "slow")

    answers = [await shop.order(api_key=slow) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [201, 201, 429]
    assert answers[0].headers["RateLimit"] == '"key";r=1;t=100'
    assert answers[0].headers["RateLimit-Policy"] == '"key";q=2;w=200'
    assert 90 <= int(answers[2].headers["Retry-After"]) <= 100
    assert (await shop.order(api_key=other)).status_code == 201


async def test_only_the_fingerprint_of_a_key_is_kept(shop: Shop) -> None:
    made, key = await keys.create(shop.db, CreateKey("kept", (Scope.ORDERS_READ,), None, "test"))

    row = await shop.row("SELECT to_jsonb(k) #>> '{}' FROM api_keys k WHERE id = :id", id=made.id)

    assert key.startswith("osk_")
    assert len(key) == 47  # 256 bits in base 64, behind the prefix
    assert key not in row
    assert digest(key).hex() in row
    async with shop.db.reading() as connection:
        assert [one.id for one in await stored.listed(connection, "kept")] == [made.id]


@pytest.mark.parametrize("tenant", ["", "-x", "a b", "a" * 65, "ä", "a'b", "a\n"])
async def test_a_client_has_a_name_that_can_stand_anywhere(shop: Shop, tenant: str) -> None:
    with pytest.raises(KeyRefused, match="a tenant is 1 to 64 letters"):
        await created(shop, tenant)
