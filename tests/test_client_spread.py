"""Reads of vectors take turns over the nodes that answer; a node that does not is left alone until it does again."""

import asyncio

import numpy as np
import pytest
from aiohttp import web
from yarl import URL

from support import cluster as clusters
from support.cluster import unique_name
from support.faulty import BUSY, cuts_before_answering, faulty, gives, hangs
from veccluster import AsyncClient, Client, errors
from veccluster.client import addresses
from veccluster.client.addresses import Addresses
from veccluster.model import token
from veccluster.model.state import ShardId

THREE = gives({"count": 3})


def asked(server, path="/count"):
    return len([one for _, one, *_ in server.requests if path in one])


# ---- the decision ----------------------------------------------------------------------------------------------------


def three():
    return Addresses.parse(["a:1", "b:2", "http://c:3"])


def names(found, times, **how):
    chosen = []
    for _ in range(times):
        address = found.choose(**how)
        found.asked(address)
        found.left(address)
        chosen.append(address.url.host)
    return "".join(chosen)


def test_reads_take_turns_and_everything_else_stays():
    found = three()
    assert names(found, 6, spread=True) == "abcabc"
    assert names(found, 3, spread=False) == "aaa"


def test_a_read_goes_to_who_has_the_least_to_do():
    found = three()
    a, b, _ = found.known
    for address in (a, a, b):
        found.asked(address)
    assert names(found, 3, spread=True) == "ccc"
    found.left(b)
    assert set(names(found, 2, spread=True)) == {"b", "c"}


def test_who_fails_is_left_out_until_it_answers_and_is_looked_at_ever_more_rarely():
    found = three()
    a, b, _ = found.known
    found.failed(a, 100.0)
    assert names(found, 4, spread=True) == "bcbc" and names(found, 2, spread=False) == "bb"
    assert list(found.to_look_at(100.5)) == []
    assert list(found.to_look_at(101.0)) == [a] and list(found.to_look_at(500.0)) == []
    found.failed(a, 101.0)
    assert list(found.to_look_at(102.9)) == [] and list(found.to_look_at(103.0)) == [a]
    for _ in range(8):
        found.failed(a, 200.0)
        (looked_at,) = found.to_look_at(1_000.0)
        assert looked_at is a
    found.failed(a, 200.0)
    assert a.look_at == 200.0 + addresses.LONGEST_AVOIDED
    found.answered(a)
    assert "a" in names(found, 3, spread=True) and names(found, 1, spread=False) == "b"
    found.failed(b, 0.0)
    assert names(found, 2, spread=False) == "cc"


def test_many_requests_that_fail_at_once_are_one_failure():
    found = three()
    for _ in range(100):
        found.failed(found.known[0], 100.0)
    assert found.known[0].look_at == 100.0 + addresses.AVOIDED


@pytest.mark.parametrize("spread", [True, False])
def test_where_all_have_failed_each_is_tried_in_turn(spread):
    found = three()
    order = []
    for now in range(9):
        address = found.choose(spread=spread)
        order.append(address.url.host)
        found.failed(address, float(now))
    assert order == list("abcabcabc")


def test_an_address_that_is_given_twice_is_one():
    assert [a.url for a in Addresses.parse(["a:1", "http://a:1/", "b:1"]).known] == [
        URL("http://a:1"),
        URL("http://b:1"),
    ]


# ---- what servers see of it ------------------------------------------------------------------------------------------


async def test_every_node_answers_its_share_of_reads_and_one_the_writes():
    answers = {
        "count": 3,
        "upserted": 1,
        "token": "",
        "results": [],
        "vectors": [],
        "missing": [],
        "id": "a",
        "vector": [1.0],
    }
    async with (
        faulty(gives(answers)) as a,
        faulty(gives(answers)) as b,
        faulty(gives(answers)) as c,
        AsyncClient([a.url, b.url, c.url]) as client,
    ):
        reads = [
            ("/count", lambda: client.count("c")),
            ("/search", lambda: client.search("c", [1.0])),
            ("/vectors/get", lambda: client.get_many("c", ["a"])),
            ("/vectors/a", lambda: client.get("c", "a")),
            ("/vectors?limit", lambda: client.page("c")),
        ]
        for path, read in reads:
            for _ in range(6):
                await read()
            assert [asked(server, path) for server in (a, b, c)] == [2, 2, 2], path
            await asyncio.gather(*(read() for _ in range(9)))
            assert [asked(server, path) for server in (a, b, c)] == [5, 5, 5], path
        for _ in range(6):
            await client.upsert("u", ["a"], [[1.0]])
        assert [asked(server, "/u/vectors") for server in (a, b, c)] == [6, 0, 0]


async def test_what_one_node_answered_the_next_is_told_to_show():
    shard = ShardId("u1", 0)

    def shows(seq):
        return gives({"count": seq}, **{token.HEADER: token.encode({shard: (1, seq)})})

    async with (
        faulty(shows(5)) as a,
        faulty(shows(9)) as b,
        faulty(shows(7)) as c,
        AsyncClient([a.url, b.url, c.url]) as client,
    ):
        for _ in range(6):
            await client.count("c")
    sent = [server.headers(token.HEADER) for server in (a, b, c)]
    assert sent[0][0] is None and token.decode(sent[1][0]) == {shard: (1, 5)}
    assert all(token.decode(one) == {shard: (1, 9)} for one in (sent[2][0], sent[0][1], sent[1][1], sent[2][1]))


async def test_reads_go_on_elsewhere_while_one_node_hangs():
    arrived = asyncio.Event()

    async def hangs_visibly(request):
        arrived.set()
        return await hangs(request)

    async with (
        faulty(hangs_visibly) as bad,
        faulty(THREE) as b,
        faulty(THREE) as c,
        AsyncClient([bad.url, b.url, c.url], timeout=60) as client,
    ):
        stuck = asyncio.ensure_future(client.count("c"))
        await arrived.wait()
        async with asyncio.timeout(15):
            for _ in range(30):
                assert await client.count("c") == 3
        assert not stuck.done() and asked(bad) == 1
        stuck.cancel()


@pytest.mark.parametrize("bad", [cuts_before_answering, BUSY])
async def test_a_node_that_failed_gets_reads_again_once_it_is_ready_and_no_read_waits_for_that(monkeypatch, bad):
    monkeypatch.setattr(addresses, "AVOIDED", 0.05)
    ready = asyncio.Event()
    looked = asyncio.Event()

    async def mends(request):
        if request.path == "/readyz":
            looked.set()
            return await (THREE if ready.is_set() else BUSY)(request)
        return await (THREE if ready.is_set() else bad)(request)

    async with faulty(mends) as first, faulty(THREE) as second, AsyncClient([first.url, second.url]) as client:
        async with asyncio.timeout(30):
            while not looked.is_set():
                assert await client.count("c") == 3
            assert asked(first) == 1
            ready.set()
            while asked(first) < 5:
                assert await client.count("c") == 3


async def test_a_refusal_is_an_answer_and_nobody_is_avoided_for_it():
    wrong = errors.InvalidRequest("no", [{"field": "k", "reason": "must be 1"}])

    async def refuse(request):
        return web.json_response(wrong.problem(), status=400, content_type="application/problem+json")

    async with faulty(refuse) as a, faulty(refuse) as b, AsyncClient([a.url, b.url]) as client:
        for _ in range(4):
            with pytest.raises(errors.InvalidRequest):
                await client.count("c")
    assert (asked(a), asked(b)) == (2, 2)


# ---- on a real cluster -----------------------------------------------------------------------------------------------


def test_what_a_session_wrote_it_reads_on_every_node():
    with Client(clusters.shared().servers) as client:
        name = unique_name("spread")
        client.create_collection(name, 2, metric="l2")
        for i in range(15):
            client.upsert(name, ["a", f"b{i}"], [[i, 0.0], [i, 1.0]], [{"i": i}, {"i": i}])
            assert client.get(name, "a").metadata == {"i": i}
            assert client.count(name) == i + 2
            assert client.search(name, np.array([i, 0.0]), k=1, filter={"i": i}, include=["metadata"])[0].id == "a"
        assert client.delete(name, ["a"]).deleted == 1
        for _ in range(6):
            with pytest.raises(errors.VectorNotFound):
                client.get(name, "a")
        client.delete_collection(name)
