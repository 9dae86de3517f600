"""Once: a request with an idempotency key is carried out once, and whoever repeats it gets what the first one got."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from services.checkout.commands import answers
from services.checkout.commands.answers import Answer
from services.checkout.commands.place_order import KeyTaken
from services.checkout.store import idempotency

if TYPE_CHECKING:
    from services.checkout.store.idempotency import Claim, StoredAnswer
    from shared.runtime.clock import Clock
    from shared.runtime.db import Database

KEY_WAIT_S = 5.0  # how long a repeated request waits for the answer of the first
KEY_POLL_S = 0.05


class Keyed(Protocol):
    """A command that came with a key."""

    @property
    def claim(self) -> Claim:
        """The key and the fingerprint of the request."""
        ...


AnyKeyed = TypeVar("AnyKeyed", bound=Keyed)


class Once(Generic[AnyKeyed]):
    """Runs each command in a task that outlives its request: when the client goes away, it is finished all the same."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        run: Callable[[AnyKeyed], Awaitable[Answer | KeyTaken]],
        repeat: Callable[[AnyKeyed, StoredAnswer], Awaitable[Answer | None]],
    ) -> None:
        """`run` claims the key and carries the command out. `repeat` is the answer to it once more, None: not yet."""
        self._db = db
        self._clock = clock
        self._run = run
        self._repeat = repeat
        self._running: dict[tuple[str, str], asyncio.Task[Answer]] = {}

    async def answer(self, command: AnyKeyed) -> Answer:
        """Carry the command out, or repeat the answer that its key got before."""
        claim = command.claim
        pair = (claim.tenant, claim.key)
        first = self._running.get(pair)
        if first is None:
            task = asyncio.create_task(self._first(command), name=f"key {claim.key}")
            self._running[pair] = task  # the event loop itself keeps only a weak reference
            task.add_done_callback(lambda _: self._running.pop(pair, None))
            return await asyncio.shield(task)
        await asyncio.wait({first}, timeout=KEY_WAIT_S)
        async with self._db.reading() as connection:
            stored = await idempotency.find(connection, claim.tenant, claim.key)
        if stored is None:
            return await self.answer(command)
        return await self._again(command, stored) or answers.key_in_use()

    async def finish(self) -> None:
        """Wait for those whose client has gone, or the recovery would have to ask the provider again."""
        if self._running:
            await asyncio.wait(list(self._running.values()))

    async def _first(self, command: AnyKeyed) -> Answer:
        result = await self._run(command)
        return result if isinstance(result, Answer) else await self._wait_for_first(command, result.stored)

    async def _wait_for_first(self, command: AnyKeyed, stored: StoredAnswer) -> Answer:
        """Another process, or one that has died, came first with this key: wait for its answer, then say so."""
        deadline = monotonic() + KEY_WAIT_S
        claim = command.claim
        while (answer := await self._again(command, stored)) is None and monotonic() < deadline:
            await self._clock.sleep(KEY_POLL_S)
            async with self._db.reading() as connection:
                found = await idempotency.find(connection, claim.tenant, claim.key)
            if found is None:  # the first one came to nothing and gave the key back: this one is first now
                return await self._first(command)
            stored = found
        return answer or answers.key_in_use()

    async def _again(self, command: AnyKeyed, stored: StoredAnswer) -> Answer | None:
        if stored.request_sha256 != command.claim.request_sha256:
            return answers.key_reused()
        return await self._repeat(command, stored)
