"""A client whose address leads to a machine without power: another connection is tried soon, and may lead elsewhere."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from aiohttp.connector import AddrInfoType

from veccluster.client import retries, transport
from veccluster.client.transport import Addresses, Call, Transport
from veccluster.errors import Unreachable


@pytest.fixture
def silent() -> Iterator[int]:
    """A port whose packets are lost: its queue is full, and nobody takes connections from it."""
    with ExitStack() as opened:
        listener = opened.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filling = opened.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


async def test_connections_that_nobody_answers_are_given_up_soon_at_first(silent, monkeypatch):
    """Before a Service forgets a dead machine one connection in three leads to it: four in a row must be over soon."""
    begun: list[float] = []
    made = transport._watchful_socket

    def noted(address: AddrInfoType) -> socket.socket:
        begun.append(time.monotonic())
        return made(address)

    monkeypatch.setattr(transport, "_watchful_socket", noted)
    sender = Transport(Addresses.parse(f"http://127.0.0.1:{silent}"), {})
    began = time.monotonic()
    with pytest.raises(Unreachable):
        await asyncio.wait_for(sender.send(Call("GET", "/healthz"), 2.5), 10)
    await sender.close()
    assert len(begun) >= 3
    assert begun[2] - began >= 2 * retries.FIRST_CONNECT


def test_a_way_that_is_slow_gets_more_time_with_every_second_connection():
    waits = [retries.connect_timeout(n) for n in range(10)]
    assert waits == sorted(waits)
    assert sum(waits[:4]) <= 3
    assert waits[0] == retries.FIRST_CONNECT
    assert waits[-1] == retries.LONGEST_CONNECT
