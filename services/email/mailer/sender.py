from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

import structlog
from pydantic import ValidationError
from typing_extensions import override

from services.email import store
from services.email.domain import MAX_ATTEMPTS, Outcome, Verdict, decide
from services.email.mailer.breaker import Breaker
from services.email.mailer.smtp import Attempt
from shared.runtime import metrics
from shared.runtime.errors import is_infrastructure
from shared.runtime.failpoints import reach
from shared.runtime.group_commit import GroupCommit
from shared.runtime.supervision import Loop, brief

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from services.email.domain import Letter
    from services.email.mailer.letters import Letters
    from services.email.mailer.smtp import Transport
    from shared.runtime.db import Database

log = structlog.get_logger()

BATCH = 200
LEASE_S = 180.0  # above the longest wait in memory and the longest SMTP dialogue together
LONGEST_WAIT_S = 30.0  # a letter that waited longer in memory is given back instead of being sent on an old lease
EXPIRE_S = 5.0
RECORD_PAUSE_S = 0.5
FINISH_S = 6.0  # a graceful stop waits so long for dialogues with the mail server
ANSWERS = frozenset({Verdict.SENT, Verdict.LATER, Verdict.REFUSED})


class Recorder(GroupCommit[Outcome, bool]):
    """Records what became of letters, many at once; the result says whether the lease still held."""

    def __init__(self, db: Database) -> None:
        """A foundation: it outlives the sender."""
        super().__init__("mail-outcomes", db, _record, _recall, at_once=_record)


class Sender(Loop):
    """Takes queued mails and sends them over a few connections at a time.

    No transaction is open while it talks to the mail server. `run_once` fills the hands of the workers; they
    work on until nothing is left.
    """

    idle_s = 0.05  # how soon a committed order's mail is seen

    def __init__(
        self,
        db: Database,
        letters: Letters,
        transport: Transport,
        recorder: Recorder,
        *,
        owner: str,
        connections: int,
        max_rate: float,
    ) -> None:
        """`owner` is unique among the replicas and survives restarts; `max_rate` is in mails per second."""
        super().__init__("mail-sender")
        self._db = db
        self._letters = letters
        self._transport = transport
        self._recorder = recorder
        self._owner = owner
        self._connections = connections
        self._allowance = Allowance(max_rate)
        self._hands: deque[tuple[Letter, float]] = deque()
        self._held: set[str] = set()  # ids of the mails that are in the hands or in work
        self._workers: set[asyncio.Task[None]] = set()
        self._recovered = False
        self._expired_at = 0.0
        self.breaker = Breaker()

    @override
    async def run_once(self) -> int:
        """Take what the workers can do next; returns how many mails were taken."""
        await self._expire()
        taken = await self._take()
        for _ in range(min(self._connections, len(self._hands)) - len(self._workers)):
            worker = asyncio.create_task(self._work(), name="mail-worker")
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        return taken

    @override
    async def finish(self) -> None:
        """Give back what is not being sent yet, and let what is being sent come to its end."""
        given_back = [asyncio.ensure_future(self._give_back(*one)) for one in self._hands]
        self._hands.clear()
        if last := {*self._workers, *given_back}:
            _, late = await asyncio.wait(last, timeout=FINISH_S)
            for task in late:
                # Its mail keeps the lease, so the next start of this replica takes it up.
                task.cancel()
        await self._transport.close()

    async def settle(self) -> None:
        """Wait until nothing is in the workers' hands."""
        while self._workers:
            await asyncio.wait(set(self._workers))

    async def _take(self) -> int:
        room = BATCH - len(self._hands)
        state = self.breaker.state
        if room < BATCH // 2 or state == "open" or (state == "half-open" and (self._workers or self._hands)):
            return 0
        limit = 1 if state == "half-open" else self._allowance.most(room)
        if not limit:
            return 0
        self._recovered = False  # until the answer is here: if only that is lost, mails are leased that nobody holds
        async with self._db.reading() as connection:
            letters = await store.take(connection, self._owner, limit, LEASE_S)
        self._recovered = True
        self._allowance.spend(len(letters))
        now = monotonic()
        self._hands.extend((letter, now) for letter in letters)
        self._held.update(letter.id for letter in letters)
        return len(letters)

    async def _work(self) -> None:
        while self._hands:
            letter, taken_at = self._hands.popleft()
            if len(self._hands) < BATCH // 2:
                self.wake()
            try:
                await self._process(letter, taken_at)
            except Exception as error:  # noqa: BLE001 - one letter must not end the worker
                # The letter keeps its lease, and counts as held, until that runs out.
                self.failed(error)
            else:
                self._held.discard(letter.id)

    async def _process(self, letter: Letter, taken_at: float) -> None:
        if monotonic() - taken_at > LONGEST_WAIT_S or self.breaker.state == "open":
            await self._give_back(letter, taken_at)
            return
        attempt = await self._attempt(letter)
        await reach("E5")
        await self._record(decide(letter, attempt.verdict, attempt.detail), taken_at)
        metrics.MAILS.labels(attempt.verdict).inc()

    async def _record(self, outcome: Outcome, taken_at: float) -> None:
        """Must succeed, or the mail goes out twice: wait for the database as long as the lease holds."""
        while True:
            try:
                if not await self._recorder.submit(outcome):
                    log.warning("somebody else took this mail over", message=outcome.id)
                return
            except Exception as error:
                if not is_infrastructure(error) or monotonic() - taken_at > LEASE_S - RECORD_PAUSE_S:
                    raise
                self.failed(error)
            await asyncio.sleep(RECORD_PAUSE_S)

    async def _attempt(self, letter: Letter) -> Attempt:
        if letter.suppressed:
            return Attempt(Verdict.SUPPRESSED)
        if letter.attempts > MAX_ATTEMPTS:
            return Attempt(Verdict.REFUSED, "the process died each time it sent this mail")
        try:
            recipient, mail = self._letters.compose(letter)
        except (ValueError, ValidationError) as error:
            return Attempt(Verdict.REFUSED, brief(error))
        return self._learn(await self._transport.send(recipient, mail))

    def _learn(self, attempt: Attempt) -> Attempt:
        """Tell the breaker what this attempt says about the mail server."""
        if attempt.verdict in ANSWERS:
            if self.breaker.success():
                log.info("mail server is back")
            return attempt
        if attempt.verdict is Verdict.UNKNOWN:
            return attempt
        was_closed = self.breaker.state == "closed"
        misconfigured = attempt.verdict is Verdict.MISCONFIGURED
        if self.breaker.failure(attempt.detail, misconfigured=misconfigured):
            tell = log.error if misconfigured else log.warning
            tell("mail server is away", reason=attempt.detail, misconfigured=misconfigured)
        if attempt.verdict is Verdict.INTERRUPTED and not was_closed:
            # The server is away for everybody: this mail is not the one that makes it hang up.
            return Attempt(Verdict.OUTAGE, attempt.detail)
        return attempt

    async def _give_back(self, letter: Letter, taken_at: float) -> None:
        """Back into the queue, as if it had never been taken."""
        await self._record(decide(letter, Verdict.OUTAGE, ""), taken_at)

    async def _expire(self) -> None:
        """Queue again what dead senders left; after a start or a lost answer also what this one does not hold."""
        if self._recovered and monotonic() - self._expired_at < EXPIRE_S:
            return
        async with self._db.reading() as connection:
            found = await store.expire(connection, None if self._recovered else self._owner, self._held)
        if found:
            log.warning("mails taken up again that nobody held", mails=found)
        self._recovered, self._expired_at = True, monotonic()


class Allowance:
    """How many mails may be taken now: `rate` per second, saved up for half a second at the most."""

    def __init__(self, rate: float) -> None:
        """Start with a full allowance."""
        self._rate = rate
        self._saved = self._most = max(1.0, rate / 2)
        self._portion = max(1.0, rate / 4)
        self._at = monotonic()

    def most(self, wanted: int) -> int:
        """How many of `wanted` may be taken now: none before there is a portion of a quarter of a second.

        Under a backlog, taking each mail as soon as it is allowed would ask the database once per mail.
        """
        now = monotonic()
        self._saved = min(self._most, self._saved + (now - self._at) * self._rate)
        self._at = now
        return min(wanted, int(self._saved)) if self._saved >= self._portion else 0

    def spend(self, taken: int) -> None:
        """Note that so many were taken."""
        self._saved -= taken


async def _record(connection: AsyncConnection, outcomes: Sequence[Outcome]) -> list[bool]:
    held = await store.record(connection, outcomes)
    return [outcome.id in held for outcome in outcomes]


async def _recall(connection: AsyncConnection, outcome: Outcome) -> bool | None:
    return True if await store.is_recorded(connection, outcome) else None
