"""A URL says where Redis is, in whichever shape, and never shows its password."""

import pytest

from shared.runtime.redis_url import parse


def test_a_url_of_one_server_is_left_as_it_is() -> None:
    found = parse("rediss://email:secret@redis.internal:6380/2?ssl_ca_certs=/etc/ca.pem")

    assert (found.kind, found.whole) == (
        "server",
        "rediss://email:secret@redis.internal:6380/2?ssl_ca_certs=/etc/ca.pem",
    )


def test_a_url_of_sentinels_names_them_and_the_master() -> None:
    found = parse("redis+sentinel://email:secret@one,two:26380,[::1]:26381/orders?db=2&sentinel_password=other")

    assert (found.kind, found.name) == ("sentinel", "orders")
    assert found.nodes == (("one", 26379), ("two", 26380), ("::1", 26381))
    assert found.server(("three", 6379)) == "redis://email:secret@three:6379?db=2"
    assert found.sentinel(("::1", 26381)) == "redis://[::1]:26381?password=other"


def test_a_url_of_a_cluster_names_any_of_its_nodes() -> None:
    found = parse("rediss+cluster://:secret@one:7000,two/0?ssl_ca_certs=/etc/ca.pem")

    assert (found.kind, found.nodes) == ("cluster", (("one", 7000), ("two", 6379)))
    assert found.server(("two", 6379)) == "rediss://:secret@two:6379?ssl_ca_certs=%2Fetc%2Fca.pem"


@pytest.mark.parametrize(
    "url",
    [
        "http://:hunter2@one",
        "redis://:hunter2@one:port",
        "redis+sentinel://:hunter2@one:26379",
        "redis+sentinel://:hunter2@/orders",
        "redis+cluster://:hunter2@one,,two",
        "redis+cluster://:hunter2@one:99999",
        "redis+cluster://:hunter2@one/3",
        "redis+other://:hunter2@one",
        "redis://:hunter2@one?decode_responses=true",
        "unix://:hunter2@/run/redis.sock?protocol=3",
        "redis+sentinel://:hunter2@one/orders?socket_timeout=60",
        "redis+cluster://:hunter2@one?db=0&retry_on_timeout=yes",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as refused:
        parse(url)

    assert "hunter2" not in str(refused.value)
    assert "hunter2" not in repr(parse("redis+cluster://:hunter2@one"))


def test_what_is_not_to_be_chosen_is_named() -> None:
    with pytest.raises(ValueError, match="must not set decode_responses, socket_timeout: "):
        parse("redis://one/0?socket_timeout=60&ssl_ca_certs=/etc/ca.pem&decode_responses=true")
