"""Mails go in over SMTP and come out of the inbox, also after a restart and with every fault."""

import asyncio
import signal
import smtplib
from email.message import EmailMessage

import aiosmtplib
import pytest

from tests.integration.sandboxes.programs import Mailbox


def mail_to(recipient: str, subject: str = "Your order", message_id: str | None = None) -> EmailMessage:
    mail = EmailMessage()
    mail["From"] = "Orderstream <orders@example.com>"
    mail["To"] = recipient
    mail["Subject"] = subject
    if message_id is not None:
        mail["Message-ID"] = message_id
    mail.set_content("Thank you.\n.a line with a dot\n..and two\n.\nEnd.\n")
    mail.add_alternative("<p>Thank <b>you</b>.</p><script>alert(1)</script>", subtype="html")
    return mail


async def send(mailbox: Mailbox, *mails: EmailMessage) -> None:
    async with aiosmtplib.SMTP(hostname="127.0.0.1", port=mailbox.smtp_port, start_tls=False) as smtp:
        for mail in mails:
            await smtp.send_message(mail)


async def test_a_mail_arrives_with_all_its_parts(mailbox: Mailbox) -> None:
    await send(mailbox, mail_to("ann@example.com", "Grüße, Ann ✓", "<ord_1.confirmation@example.com>"))

    [mail] = await mailbox.messages(to="Ann@Example.com")

    assert (mail["from"], mail["to"]) == ("orders@example.com", ["ann@example.com"])
    assert (mail["subject"], mail["message_id"]) == ("Grüße, Ann ✓", "<ord_1.confirmation@example.com>")
    assert str(mail["text"]).splitlines() == ["Thank you.", ".a line with a dot", "..and two", ".", "End."]
    assert "<b>you</b>" in str(mail["html"])
    headers = mail["headers"]
    assert isinstance(headers, dict)
    assert headers["From"] == "Orderstream <orders@example.com>"
    assert (await mailbox.http.get(f"/api/messages/{mail['id']}")).json() == mail


async def test_the_standard_librarys_client_is_served_too(mailbox: Mailbox) -> None:
    def send_blind_copy() -> None:
        with smtplib.SMTP("127.0.0.1", mailbox.smtp_port) as smtp:
            recipients = ["ann@example.com", "bob@example.com"]
            smtp.sendmail("shop@example.com", recipients, "Subject: Hi\r\n\r\nText\r\n")

    await asyncio.to_thread(send_blind_copy)

    [mail] = await mailbox.messages(to="bob@example.com")
    assert (mail["to"], mail["subject"]) == (["ann@example.com", "bob@example.com"], "Hi")


async def test_lists_page_from_the_newest_to_the_oldest(mailbox: Mailbox) -> None:
    await send(mailbox, *(mail_to("ann@example.com", f"Mail {number}") for number in range(5)))

    first = await mailbox.messages(to="ann@example.com", limit=2)
    second = await mailbox.messages(to="ann@example.com", limit=3, starting_after=str(first[-1]["id"]))

    subjects = [mail["subject"] for mail in [*first, *second]]
    assert subjects == ["Mail 4", "Mail 3", "Mail 2", "Mail 1", "Mail 0"]
    assert (await mailbox.http.get("/api/messages", params={"limit": 4})).json()["has_more"] is True
    assert (await mailbox.http.get("/api/messages", params={"limit": 0})).status_code == 422


async def test_mails_are_found_and_counted_by_message_id(mailbox: Mailbox) -> None:
    await send(mailbox, *(mail_to("ann@example.com", message_id="<one@example.com>") for _ in range(2)))
    await send(mailbox, mail_to("ann@example.com", message_id="<two@example.com>"))

    counted = await mailbox.http.get("/api/count", params={"message_id": "<one@example.com>"})

    assert counted.json() == {"count": 2}
    assert len(await mailbox.messages(message_id="<two@example.com>", to="ann@example.com")) == 1


async def test_mails_survive_kill_9_and_ids_are_never_used_twice(mailbox: Mailbox) -> None:
    await send(mailbox, mail_to("ann@example.com"))
    [before] = await mailbox.messages()

    await mailbox.program.restart(signal.SIGKILL)
    assert await mailbox.messages() == [before]
    deleted = await mailbox.http.delete("/api/messages")
    await mailbox.program.restart(signal.SIGKILL)
    await send(mailbox, mail_to("ann@example.com"))

    assert deleted.json() == {"deleted": 1}
    [after] = await mailbox.messages()
    assert str(after["id"]) > str(before["id"])


async def test_the_pages_show_a_mail_without_trusting_it(mailbox: Mailbox) -> None:
    await send(mailbox, mail_to("ann@example.com", "<script>alert(2)</script>"))
    [mail] = await mailbox.messages()

    inbox = await mailbox.http.get("/")
    page = await mailbox.http.get(f"/messages/{mail['id']}")
    html = await mailbox.http.get(f"/messages/{mail['id']}/html")

    assert "&lt;script&gt;alert(2)" in inbox.text
    assert "<iframe" in page.text
    assert "sandbox" in page.text
    assert html.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert inbox.headers["content-security-policy"].startswith("default-src 'self'")
    assert (await mailbox.http.get("/messages/msg_99999999")).status_code == 404


@pytest.mark.parametrize(
    ("step", "code", "error"),
    [
        ("mail", 450, aiosmtplib.SMTPSenderRefused),
        ("mail", 421, aiosmtplib.SMTPSenderRefused),
        ("rcpt", 550, aiosmtplib.SMTPRecipientsRefused),
        ("data", 451, aiosmtplib.SMTPDataError),
        ("data", 554, aiosmtplib.SMTPDataError),
    ],
)
async def test_a_refused_mail_is_not_kept(
    mailbox: Mailbox, step: str, code: int, error: type[aiosmtplib.SMTPException]
) -> None:
    await mailbox.faults(refuse_with={"code": code, "step": step})

    with pytest.raises(error) as caught:
        await send(mailbox, mail_to("ann@example.com"))

    assert str(code) in str(caught.value)
    assert await mailbox.messages() == []


async def test_drop_after_dot_keeps_the_mail_and_answers_nothing(mailbox: Mailbox) -> None:
    await mailbox.faults(drop_after_dot=True)

    with pytest.raises(aiosmtplib.SMTPServerDisconnected):
        await send(mailbox, mail_to("ann@example.com"))

    assert len(await mailbox.messages()) == 1


async def test_the_greeting_comes_late(mailbox: Mailbox) -> None:
    await mailbox.faults(greeting_delay_ms=60_000)

    smtp = aiosmtplib.SMTP(hostname="127.0.0.1", port=mailbox.smtp_port, start_tls=False, timeout=0.3)
    with pytest.raises(aiosmtplib.SMTPConnectTimeoutError):
        await smtp.connect()

    await mailbox.faults()
    await send(mailbox, mail_to("ann@example.com"))
    assert len(await mailbox.messages()) == 1


async def test_the_same_seed_refuses_the_same_mails(mailbox: Mailbox) -> None:
    async def accepted() -> list[bool]:
        await mailbox.faults(refuse_with={"code": 450, "step": "rcpt"}, rate=0.5, seed=3)
        outcomes = []
        for _ in range(12):
            try:
                await send(mailbox, mail_to("ann@example.com"))
                outcomes.append(True)
            except aiosmtplib.SMTPRecipientsRefused:
                outcomes.append(False)
        return outcomes

    first = await accepted()

    assert await accepted() == first
    assert set(first) == {True, False}


@pytest.mark.parametrize(
    "values",
    [
        {"greeting_delay_ms": -1},
        {"refuse_with": {"code": 250, "step": "mail"}},
        {"refuse_with": {"code": 450, "step": "quit"}},
        {"refuse_with": {"code": 450}},
        {"drop_after_dot": 1},
        {"rate": 2},
        {"for_s": 0},
        {"surprise": True},
    ],
)
async def test_nonsense_faults_are_refused(mailbox: Mailbox, values: dict[str, object]) -> None:
    assert (await mailbox.faults(**values)).status_code == 422
    assert (await mailbox.http.get("/api/faults")).json()["active"] is False
