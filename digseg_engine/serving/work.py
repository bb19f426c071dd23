"""The model's queue: a few threads, a bounded number of requests that wait, and none that is worked on for nobody.

A request whose client has gone leaves the queue; one that is being worked on is finished, because the model cannot be stopped in
the middle, and keeps its place until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Request

from digseg_engine.serving.limits import Limits
from digseg_engine.serving.problems import busy, gone

Made = TypeVar("Made")


class Work:
    """`places` are taken by requests that are worked on and by those that wait."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.taken = limits, 0
        self._pool: ThreadPoolExecutor | None = None

    @property
    def places(self) -> int:
        return self.limits.workers + self.limits.queue

    @property
    def full(self) -> bool:
        return self.taken >= self.places

    async def do(self, request: Request, task: Callable[[], Made]) -> Made:
        """Run `task` in a thread, when its turn comes. The request's body must have been read. Raises RequestError when the
        queue is full, and when the client has gone."""
        if self.full:
            raise busy(f"{self.limits.queue} requests wait for the model already; ask again later")
        if self._pool is None:  # also after `close`: an application may be started again
            self._pool = ThreadPoolExecutor(self.limits.workers, thread_name_prefix="digseg-serve")
        loop = asyncio.get_running_loop()
        job = self._pool.submit(task)
        self.taken += 1
        job.add_done_callback(lambda done: loop.call_soon_threadsafe(self._leave))
        return await self._or_gone(request, job)

    def _leave(self) -> None:
        self.taken -= 1

    async def _or_gone(self, request: Request, job: Future[Made]) -> Made:
        answer = asyncio.wrap_future(job)
        left: asyncio.Future[None] = asyncio.ensure_future(_left(request))
        both: set[asyncio.Future[Any]] = {answer, left}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise gone()
        finally:
            left.cancel()
            if not answer.done():
                answer.cancel()
                answer.add_done_callback(lambda done: done.cancelled() or done.exception())

    def close(self) -> None:
        """Wait for what is being worked on; what waits is given up."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)


async def _left(request: Request) -> None:
    """Returns once the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
