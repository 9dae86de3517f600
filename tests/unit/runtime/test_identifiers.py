"""Identifiers sort by time, are what their RFC says, and nothing else passes for one."""

import os
import time
from uuid import RFC_4122, UUID

from hypothesis import given
from hypothesis import strategies as st

from shared.runtime.identifiers import is_id, new_id, prefixed, random_bytes, uuid7, uuid7_of

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
MILLISECONDS = st.integers(0, 2**48 - 1)
REST = st.binary(min_size=10, max_size=10)
PREFIXES = st.text("abcdefghijklmnopqrstuvwxyz", min_size=2, max_size=8)


@given(MILLISECONDS, REST)
def test_a_uuid_carries_version_variant_and_its_millisecond(milliseconds: int, rest: bytes) -> None:
    made = uuid7_of(milliseconds, rest)

    assert made.version == 7
    assert made.variant == RFC_4122
    assert made.int >> 80 == milliseconds


@given(MILLISECONDS, REST, REST)
def test_two_uuids_of_one_millisecond_differ_when_their_random_bits_do(
    milliseconds: int, one: bytes, other: bytes
) -> None:
    # 74 of the 80 bits are kept: the rest makes room for version and variant.
    kept = [(int.from_bytes(rest) >> 68, int.from_bytes(rest) & (1 << 62) - 1) for rest in (one, other)]

    same = uuid7_of(milliseconds, one) == uuid7_of(milliseconds, other)

    assert same is (kept[0] == kept[1])


@given(MILLISECONDS, MILLISECONDS, REST, REST)
def test_ids_sort_by_time(earlier: int, later: int, one: bytes, other: bytes) -> None:
    earlier, later = sorted((earlier, later))
    if earlier == later:
        return

    first, second = uuid7_of(earlier, one), uuid7_of(later, other)

    assert first < second
    assert str(first) < str(second)
    assert prefixed("ord", first) < prefixed("ord", second)


def test_a_new_uuid_is_of_now_and_never_the_same_again() -> None:
    before = time.time_ns() // 1_000_000

    made = [uuid7() for _ in range(1000)]

    after = time.time_ns() // 1_000_000
    assert len(set(made)) == 1000
    assert all(before <= one.int >> 80 <= after for one in made)
    assert [one.int >> 80 for one in made] == sorted(one.int >> 80 for one in made)


@given(PREFIXES, st.uuids())
def test_a_prefixed_id_is_the_uuid_in_base_32(prefix: str, value: UUID) -> None:
    text = prefixed(prefix, value)

    digits = text.removeprefix(f"{prefix}_")
    assert len(digits) == 26
    assert sum(ALPHABET.index(digit) << 5 * place for place, digit in enumerate(reversed(digits))) == value.int
    assert is_id(prefix, text)


@given(st.text(max_size=40))
def test_what_we_did_not_make_is_no_id(text: str) -> None:
    assert not is_id("ord", text)


def test_an_id_is_refused_with_any_flaw() -> None:
    good = new_id("ord")

    assert is_id("ord", good)
    for flawed in (
        good.upper(),
        good[:-1],
        good + "0",
        good + "\n",
        " " + good,
        good.replace("_", "-"),
        good[:-1] + "u",
        good[:-1] + "é",
        good.replace("ord", "ref"),
        f"ord_{good}",
        "",
        "ord_",
    ):
        assert not is_id("ord", flawed), flawed


def test_a_forked_process_draws_bytes_of_its_own() -> None:
    random_bytes(10)  # so that there is something left to share
    reading, writing = os.pipe()
    if not os.fork():
        os.write(writing, random_bytes(10))
        os._exit(0)
    os.wait()

    assert os.read(reading, 10) != random_bytes(10)

    os.close(reading)
    os.close(writing)
