"""The blocking client: an `AsyncClient` on an event loop in a thread of its own."""

import asyncio
import atexit
import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from veccluster.client.aio import DEFAULT_TIMEOUT, AsyncClient, Filter
from veccluster.client.results import Vector
from veccluster.client.transport import forked, soon

P = ParamSpec("P")
T = TypeVar("T")

LETTING_GO_SECONDS = 2.0
"""How long `close` waits for calls that were interrupted."""


def _blocking(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Client", P], T]:
    """The method of `AsyncClient` as one of `Client`: same arguments, same words, waits for the result."""

    @functools.wraps(method)
    def call(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(method(self._client, *args, **kwargs))

    return call


class Client:
    """A client of one cluster, for code without asyncio; safe to share between threads, and kept open for reuse.

    Everything is as `AsyncClient` says. Not to be carried over a `fork`: make one in each process. One that is not
    closed is closed when it is forgotten, or the program ends.
    """

    def __init__(
        self,
        servers: str | Sequence[str] = "http://127.0.0.1:8001",
        *,
        timeout: float = DEFAULT_TIMEOUT,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`timeout`: seconds for a request with its retries, unless the call sets its own; `headers`: for each."""
        self._client = AsyncClient(servers, timeout=timeout, headers=headers)
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_serve, args=(self._loop,), name="veccluster-client", daemon=True)
        self._thread.start()
        self._forgotten = weakref.finalize(self, _end_soon, self._client, self._loop, self._process)
        self._forgotten.atexit = False  # then there is time to wait for it
        _clients.add(self)

    create_collection = _blocking(AsyncClient.create_collection)
    collections = _blocking(AsyncClient.collections)
    collection = _blocking(AsyncClient.collection)
    delete_collection = _blocking(AsyncClient.delete_collection)
    upsert = _blocking(AsyncClient.upsert)
    upsert_items = _blocking(AsyncClient.upsert_items)
    upload = _blocking(AsyncClient.upload)
    delete = _blocking(AsyncClient.delete)
    search = _blocking(AsyncClient.search)
    search_many = _blocking(AsyncClient.search_many)
    get = _blocking(AsyncClient.get)
    get_many = _blocking(AsyncClient.get_many)
    page = _blocking(AsyncClient.page)
    count = _blocking(AsyncClient.count)
    cluster = _blocking(AsyncClient.cluster)
    recover_shard = _blocking(AsyncClient.recover_shard)
    health = _blocking(AsyncClient.health)

    def iterate(
        self,
        collection: str,
        *,
        filter: Filter | None = None,  # noqa: A002 - its name in the interface
        page_rows: int = 500,
        consistency: str | None = None,
        timeout: float | None = None,
    ) -> Iterator[Vector]:
        """Every vector of the collection that matches; `timeout` is for each page."""
        cursor: str | None = None
        while True:
            page = self.page(
                collection, limit=page_rows, cursor=cursor, filter=filter, consistency=consistency, timeout=timeout
            )
            yield from page.vectors
            cursor = page.cursor
            if cursor is None:
                return

    def close(self) -> None:
        """Close the connections and end the thread; calling it twice is fine."""
        if self._loop.is_closed() or self._process != os.getpid():
            return
        self._run(_end(self._client))
        self._forgotten.detach()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed() or self._process != os.getpid():
            work.close()
            raise RuntimeError("this Client is closed" if self._process == os.getpid() else forked(self._process))
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


_clients: "weakref.WeakSet[Client]" = weakref.WeakSet()
"""Those that there are."""


@atexit.register
def _close_all() -> None:
    """A program that ends says nothing of what it left open."""
    for client in list(_clients):
        with contextlib.suppress(Exception):
            client.close()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


async def _end(client: AsyncClient) -> None:
    """Let calls that were interrupted (Ctrl-C) end before the loop does; asyncio complains of them otherwise."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        if not task.cancelling():
            task.cancel()
    if others:
        await asyncio.wait(others, timeout=LETTING_GO_SECONDS)
    await client.close()


def _end_soon(client: AsyncClient, loop: asyncio.AbstractEventLoop, process: int) -> None:
    """As `Client.close`, when nobody has it any more: in whichever thread that is noticed, nothing is waited for."""

    async def end() -> None:
        await _end(client)
        loop.stop()

    if process == os.getpid():
        soon(loop, end)
