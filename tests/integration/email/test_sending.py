"""From queued mails to the mail server, and what happens when it does not want them."""

from deploy.local.mail.faults import Faults
from services.email import store
from services.email.domain import Verdict, decide
from tests.integration.email.conftest import World
from tests.support.orders import Order


async def test_a_mail_has_both_bodies_and_says_what_was_ordered(world: World) -> None:
    order = Order(("SKU-7", 3, 1250), currency="KWD")

    await world.deliver(order.completed())
    await world.send()

    [mail] = world.mailbox.mails()
    text, html = (part.get_content() for part in mail.iter_parts())
    assert mail["From"] == "Orderstream <shop@orderstream.example>"
    assert mail["To"] == "Ann <ann@example.com>"
    assert mail["Message-ID"] == f"<completed.{order.id}@orderstream.example>"
    for body in (text, html):
        assert "KWD 3.750" in body
        assert "Ring 1" in body
    assert 'style="' in html
    assert await world.messages() == [("completed", "sent", 1)]


async def test_what_customers_write_is_never_markup_headers_or_template(world: World) -> None:
    event = Order().completed()
    event.data["customer"]["name"] = "<b>Ann</b> {{7*7}}\r\nBcc: all@example.com"

    await world.deliver(event)
    await world.send()

    [mail] = world.mailbox.mails()
    html = list(mail.iter_parts())[1].get_content()
    assert mail["Bcc"] is None
    assert "<b>Ann" not in html
    assert "{{7*7}}" in html


async def test_a_temporary_refusal_is_tried_again_after_a_minute(world: World) -> None:
    world.mailbox.refuse(450, "rcpt")
    await world.deliver(Order().completed())

    await world.send()

    assert await world.messages("status, attempts, round(extract(epoch FROM next_attempt_at - now()))::int / 10") == [
        ("queued", 1, 6)
    ] or await world.messages("status, attempts") == [("queued", 1)]
    world.mailbox.behave()
    await world.later()
    await world.send()
    assert await world.messages() == [("completed", "sent", 2)]


async def test_a_permanent_refusal_is_final(world: World) -> None:
    world.mailbox.refuse(550, "rcpt")
    await world.deliver(Order().completed())

    await world.send()
    await world.later()
    await world.send()

    [(status, attempts, error)] = await world.messages("status, attempts, last_error")
    assert (status, attempts) == ("failed", 1)
    assert error.startswith("550")


async def test_an_address_that_cannot_exist_is_not_even_tried(world: World) -> None:
    event = Order().completed()
    event.data["customer"]["email"] = "ann@@example.com\r\nx"

    await world.deliver(event)
    await world.send()

    [(status, error)] = await world.messages("status, last_error")
    assert status == "failed"
    assert "NoSuchAddress" in error


async def test_a_closing_server_costs_no_attempt_and_is_left_in_peace(world: World) -> None:
    world.mailbox.refuse(421, "data")
    await world.deliver(*(Order().completed() for _ in range(20)))

    await world.send()

    assert world.sender.breaker.state == "open"
    assert {row[1:] for row in await world.messages()} == {("queued", 0)}
    world.mailbox.behave()
    await world.later()
    await world.send()
    await world.later()
    await world.send()
    assert {row[1:] for row in await world.messages()} == {("sent", 1)}
    assert len(world.mailbox.mails()) == 20


async def test_an_hour_without_a_server_loses_nothing_and_one_mail_at_a_time_asks_for_it(
    world: World,
) -> None:
    world.mailbox.close()
    await world.deliver(*(Order().completed() for _ in range(30)))

    for _ in range(40):
        await world.send()
        await world.deliver(Order().completed())
        await world.later(90)

    assert {row[1:] for row in await world.messages()} == {("queued", 0)}
    assert {one["state"] for one in (await world.get("/ops/deliveries", limit="100"))["items"]} == {"done"}
    assert await world.sender.run_once() == 1  # the probe
    await world.sender.settle()
    await world.mailbox.open()
    await world.later()
    await world.send()
    assert {row[1:] for row in await world.messages()} == {("sent", 1)}
    assert len(world.mailbox.mails()) == 70


async def test_when_the_answer_is_lost_after_the_final_dot_the_mail_is_sent_once_more_and_never_again(
    world: World,
) -> None:
    world.mailbox.faults.set(Faults(drop_after_dot=True))
    await world.deliver(Order().completed())

    for _ in range(4):
        await world.send()
        await world.later()

    mails = world.mailbox.mails()
    assert len(mails) == 2
    assert len({mail["Message-ID"] for mail in mails}) == 1
    [(status, error)] = await world.messages("status, last_error")
    assert status == "failed"
    assert "unknown twice" in error


async def test_a_lost_answer_once_ends_in_sent(world: World) -> None:
    world.mailbox.faults.set(Faults(drop_after_dot=True))
    await world.deliver(Order().completed())
    await world.send()

    world.mailbox.behave()
    await world.later()
    await world.send()

    assert await world.messages() == [("completed", "sent", 2)]


async def test_refused_credentials_pause_the_sender_and_cost_no_attempt(world: World) -> None:
    world.mailbox.refuse(535, "mail")
    await world.deliver(Order().completed())

    await world.send()

    assert world.sender.breaker.misconfigured
    assert world.sender.breaker.state == "open"
    assert await world.messages() == [("completed", "queued", 0)]


async def test_a_sender_that_was_taken_over_records_nothing(world: World) -> None:
    await world.deliver(Order().completed())
    async with world.db.reading() as connection:
        [mine] = await store.take(connection, "sleeper", 10, 0.0)
        await store.expire(connection)
    await world.send()

    held = await world.recorder.submit(decide(mine, Verdict.REFUSED, "550 too late"))

    assert not held
    assert await world.messages() == [("completed", "sent", 2)]


async def test_a_restarted_sender_takes_up_what_it_was_sending_when_it_was_killed(world: World) -> None:
    await world.deliver(Order().completed())
    async with world.db.reading() as connection:
        await store.take(connection, "test", 10, 3600.0)
        stranger = await store.take(connection, "other", 10, 3600.0)
    assert not stranger

    await world.send()

    assert await world.messages("status") == [("sent",)]


async def test_many_mails_share_few_connections_and_each_arrives_once(world: World) -> None:
    await world.deliver(*(Order().completed() for _ in range(300)))

    await world.send()

    ids = [mail["Message-ID"] for mail in world.mailbox.mails()]
    assert len(ids) == len(set(ids)) == 300
    assert {row[1:] for row in await world.messages()} == {("sent", 1)}
