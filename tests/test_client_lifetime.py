"""A client that is not closed, or carried over a fork or to a second event loop: no noise, no waiting, clear words.

Each script is a program of its own, as a person would write it.
"""

import asyncio
import contextlib
import gc
import os
import signal
import sys
import textwrap
import weakref

import pytest

from support.faulty import faulty, gives
from veccluster import AsyncClient, Client

PATIENCE = 60
"""Seconds for a program that takes one; longer than any timeout of the client."""


async def run(script: str, url: str, *options: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a program that knows `url`."""
    text = f"from veccluster import Client, AsyncClient\nurl = {url!r}\n{textwrap.dedent(script)}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *options, "-c", text),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    finally:
        with contextlib.suppress(ProcessLookupError):  # with the forks that it left behind, if it did
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    return process.returncode or 0, out.decode(), err.decode()


@pytest.mark.parametrize(
    "script",
    [
        "client = Client(url)\nprint(client.count('c'))",
        """
        import threading
        def work():
            client = Client(url)
            return client.count('c')
        work()
        Client(url).count('c')
        several = [Client(url) for _ in range(20)]
        for one in several:
            one.count('c')
        closed = Client(url)
        closed.close()
        thread = threading.Thread(target=several[0].count, args=('c',))
        thread.start()
        print(several[1].count('c'))
        """,
        """
        import asyncio
        async def work():
            kept, forgotten = AsyncClient(url), AsyncClient(url)
            await forgotten.count('c')
            del forgotten
            await asyncio.sleep(0.05)
            return await kept.count('c')
        client = AsyncClient(url)
        asyncio.run(client.count('c'))
        print(asyncio.run(work()))
        """,
    ],
    ids=["one", "many", "asyncio"],
)
async def test_a_program_that_does_not_close_its_client_ends_without_a_word(script):
    # Who closes nothing within asyncio may be told so by a Python that was asked for it; who has no loop may not.
    options = () if "asyncio" in script else ("-W", "always::ResourceWarning")
    async with faulty(gives({"count": 3})) as server:
        assert await run(script, server.url, *options) == (0, "3\n", "")


async def test_a_client_that_is_forgotten_closes_its_connections_and_ends_its_thread():
    async with faulty(gives({"count": 3})) as server:
        client = Client(server.url)
        assert await asyncio.to_thread(client.count, "c") == 3
        thread, gone = client._thread, weakref.ref(client)
        del client
        gc.collect()
        assert gone() is None
        await asyncio.to_thread(thread.join, PATIENCE)
        assert not thread.is_alive()
        async with asyncio.timeout(PATIENCE):
            await server.left_alone()


FORKS = """
import os, sys, time
def in_child(work):
    '''What it says, and how long it took; the child ends as any program does.'''
    read, write = os.pipe()
    if os.fork() == 0:
        started = time.monotonic()
        try:
            said = repr(work())
        except RuntimeError as error:
            said = str(error)
        os.write(write, f"{time.monotonic() - started < 5} {said}".encode())
        sys.exit()
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.wait()
    return said
"""


async def test_a_client_that_was_carried_over_a_fork_says_so_at_once_and_still_works_where_it_was_made():
    script = (
        FORKS
        + """
with Client(url, timeout=60) as client:
    print(client.count('c'))
    print(in_child(lambda: client.count('c')))
    print(in_child(lambda: client.get_many('c', ['1'])))
    print(in_child(lambda: client.close()))
    print(in_child(lambda: Client(url).count('c')))
    for _ in range(3):
        print(client.count('c'))
"""
    )
    async with faulty(gives({"count": 3})) as server:
        code, out, err = await run(script, server.url)
    lines = out.splitlines()
    assert (code, [line for line in err.splitlines() if "fork" not in line]) == (0, [])
    assert lines[0] == "3" and lines[-3:] == ["3"] * 3
    assert all("True this client belongs to process" in line and "make a client in each" in line for line in lines[1:3])
    assert lines[3:5] == ["True None", "True 3"]


async def test_an_asyncio_client_that_was_carried_over_a_fork_says_so_at_once():
    script = (
        FORKS
        + """
import asyncio
client = AsyncClient(url, timeout=60)
async def twice():
    print(await client.count('c'))
    print(in_child(lambda: asyncio.new_event_loop().run_until_complete(client.count('c'))))
    print(await client.count('c'))
    await client.close()
asyncio.run(twice())
"""
    )
    async with faulty(gives({"count": 3})) as server:
        code, out, err = await run(script, server.url)
    first, second, third = out.splitlines()
    assert (code, first, third) == (0, "3", "3"), err
    assert second.startswith("True this client belongs to process")


def test_an_asyncio_client_on_a_second_event_loop_says_what_to_do():
    async def serve_and(work):
        async with faulty(gives({"count": 3})) as server:
            client = AsyncClient(server.url)
            assert await client.count("c") == 3
            await asyncio.to_thread(asyncio.run, work(client))
            assert await client.count("c") == 3
            await client.close()
            await asyncio.to_thread(asyncio.run, work_after_closing(client))

    async def elsewhere(client):
        with pytest.raises(RuntimeError, match="make one for each loop"):
            await client.count("c")
        with pytest.raises(RuntimeError, match="make one for each loop"):
            await client.upsert("c", ["a"], [[1.0]])

    async def work_after_closing(client):
        assert await client.count("c") == 3
        await client.close()

    asyncio.run(serve_and(elsewhere))


async def test_a_client_of_a_loop_that_is_gone_can_be_closed_and_used_again():
    script = """
    import asyncio
    client = AsyncClient(url)
    async def work():
        return await client.count('c')
    async def again():
        await client.close()
        return await client.count('c')
    print(asyncio.run(work()))
    try:
        asyncio.run(work())
    except RuntimeError as error:
        print(error)
    print(asyncio.run(again()))
    """
    async with faulty(gives({"count": 3})) as server:
        code, out, err = await run(script, server.url)
    first, second, third = out.splitlines()
    assert (code, first, third, err) == (0, "3", "3", "")
    assert "another event loop" in second and "close it before it is used on the next" in second
