"""What the client does when a cluster misbehaves, by a server that does so on demand; the rest has real nodes."""

import asyncio
import socket

import numpy as np
import pyarrow as pa
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from support.faulty import (
    BUSY,
    STORED,
    Answer,
    cuts_before_answering,
    cuts_mid_reply,
    faulty,
    gives,
    hangs,
    refuses,
)
from veccluster import AsyncClient, Client, errors
from veccluster.client import retries
from veccluster.client.retries import Again, Lost, NotSent, Refused
from veccluster.model import token
from veccluster.model.state import ShardId


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


async def put_one(client: AsyncClient, **more):
    return await client.upsert("c", ["a"], [[1.0, 2.0]], **more)


async def test_a_write_is_sent_again_after_503_with_the_same_operation_id():
    async with faulty(BUSY, BUSY, STORED) as server, AsyncClient(server.url) as client:
        assert (await put_one(client)).upserted == 1
        assert (await put_one(client)).upserted == 1
    ids = server.headers("Operation-Id")
    assert ids[0] and ids[0] == ids[1] == ids[2] != ids[3]
    assert server.requests[0][3] == server.requests[2][3]


@pytest.mark.parametrize("cut", [cuts_before_answering, cuts_mid_reply])
async def test_a_write_whose_answer_was_cut_off_is_sent_again_with_the_same_operation_id(cut):
    async with faulty(cut, STORED) as server, AsyncClient(server.url) as client:
        assert (await put_one(client)).upserted == 1
    assert len(set(server.headers("Operation-Id"))) == 1 and len(server.requests) == 2


async def test_a_write_without_an_answer_has_an_unknown_outcome():
    async with faulty(hangs) as server, AsyncClient(server.url) as client:
        with pytest.raises(errors.OutcomeUnknown, match="may or may not"):
            await put_one(client, timeout=0.2)


async def test_a_write_that_was_lost_and_then_refused_has_an_unknown_outcome():
    async with faulty(cuts_mid_reply, BUSY) as server, AsyncClient(server.url) as client:
        with pytest.raises(errors.OutcomeUnknown):
            await put_one(client, timeout=0.4)


async def test_a_write_that_was_only_ever_refused_is_known_not_to_be_done():
    async with faulty(BUSY) as server, AsyncClient(server.url) as client:
        with pytest.raises(errors.Unavailable, match="too busy"):
            await put_one(client, timeout=0.3)


async def test_a_write_that_never_reached_a_server_is_known_not_to_be_done():
    async with AsyncClient(closed_port()) as client:
        with pytest.raises(errors.Unreachable, match="refuses connections"):
            await put_one(client, timeout=0.3)


async def test_a_write_that_ran_out_of_time_before_it_was_sent_is_known_not_to_be_done():
    with socket.socket() as full:  # nobody accepts: the queue of connections fills up, and the next one waits
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        others = [socket.socket() for _ in range(4)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        async with AsyncClient(f"http://127.0.0.1:{full.getsockname()[1]}") as client:
            with pytest.raises(errors.Unreachable, match="in time"):
                await put_one(client, timeout=0.3)
        for other in others:
            other.close()


async def test_a_read_without_an_answer_is_unreachable_and_names_the_address():
    async with faulty(hangs) as server, AsyncClient(server.url) as client:
        with pytest.raises(errors.Unreachable, match=server.url):
            await client.count("c", timeout=0.2)


async def test_a_node_that_is_down_is_left_for_the_next_and_not_asked_again():
    async with (
        faulty(cuts_before_answering) as bad,
        faulty(gives({"count": 3})) as good,
        AsyncClient([bad.url, good.url]) as client,
    ):
        for _ in range(5):
            assert await client.count("c") == 3
        assert len([path for _, path, *_ in bad.requests if path.endswith("/count")]) == 1


async def test_what_a_node_has_answered_is_told_rather_than_that_another_is_down():
    missing = errors.ShardsUnavailable("shard 1 is away", missing_shards=[1], not_stored=["a"])
    async with faulty(refuses(missing)) as server:
        # Enough attempts that some end at either address, whichever is asked first.
        for timeout in (0.7, 0.8, 0.9, 1.0, 1.1):
            async with AsyncClient([server.url, closed_port()], timeout=timeout) as client:
                with pytest.raises(errors.ShardsUnavailable) as refused:
                    await client.upsert("c", ["a"], np.ones((1, 2), np.float32))
                assert refused.value.extra["not_stored"] == ["a"]


async def test_a_node_that_hangs_is_left_for_the_next_before_the_deadline():
    async with (
        faulty(hangs) as bad,
        faulty(gives({"count": 3})) as good,
        AsyncClient([bad.url, good.url]) as client,
    ):
        assert await client.count("c", timeout=1.5) == 3


async def test_retry_after_is_honoured_even_when_that_means_giving_up_at_once():
    patient = refuses(errors.Unavailable("rebuilding"), **{"Retry-After": "60"})
    async with faulty(patient) as server, AsyncClient(server.url) as client:
        with pytest.raises(errors.Unavailable, match="rebuilding"):
            await client.count("c", timeout=5)
    assert len(server.requests) == 1


async def test_what_is_wrong_is_not_sent_again():
    wrong = errors.InvalidRequest("two things", [{"field": "k", "reason": "must be 1 or more"}])
    async with faulty(refuses(wrong)) as server, AsyncClient(server.url) as client:
        with pytest.raises(errors.InvalidRequest) as caught:
            await client.search("c", [1.0], k=0)
    assert caught.value.errors == wrong.errors
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "error",
    [
        errors.CollectionNotFound("c"),
        errors.VectorNotFound("v"),
        errors.Conflict("c"),
        errors.PayloadTooLarge("c"),
        errors.InsufficientStorage("full"),
        errors.VecClusterError("oops"),
    ],
    ids=lambda e: e.slug,
)
async def test_every_problem_type_has_its_own_exception(error):
    async with faulty(refuses(error)) as server, AsyncClient(server.url) as client:
        with pytest.raises(type(error)) as caught:
            await client.collection("c")
    assert type(caught.value) is type(error)
    assert caught.value.detail == error.detail


async def test_missing_shards_are_named():
    gone = errors.ShardsUnavailable("two shards", missing_shards=["words/1"])
    async with faulty(refuses(gone, **{"Retry-After": "9"})) as server, AsyncClient(server.url) as client:
        with pytest.raises(errors.ShardsUnavailable) as caught:
            await client.search("c", [1.0], timeout=1)
    assert caught.value.extra["missing_shards"] == ["words/1"]


async def test_a_delete_that_was_lost_and_then_finds_nothing_is_done():
    gone = refuses(errors.CollectionNotFound("c"))
    async with faulty(cuts_mid_reply, gone) as server, AsyncClient(server.url) as client:
        await client.delete_collection("c")
    async with faulty(gone) as server, AsyncClient(server.url) as client:
        with pytest.raises(errors.CollectionNotFound):
            await client.delete_collection("c")


async def test_something_that_is_no_vector_database_is_told_as_such():
    async def html(request):
        return web.Response(text="<html>hello</html>", content_type="text/html", status=404)

    async with faulty(html) as server, AsyncClient(server.url) as client:
        with pytest.raises(errors.VecClusterError, match="not as a VecCluster node does"):
            await client.collections()


@pytest.mark.parametrize("address", ["", "ftp://x:1", "http://", "http://host:port", []])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(errors.InvalidRequest, match="servers"):
        AsyncClient(address)


SHARD = ShardId("u1", 0)


def told(*positions) -> Answer:
    return gives({"upserted": 1}, **{token.HEADER: token.encode(dict(positions))})


async def test_session_tokens_are_sent_back_merged_to_the_furthest():
    other = ShardId("u1", 1)
    script = told((SHARD, (1, 9))), told((SHARD, (1, 4)), (other, (1, 2))), gives({"count": 0})
    async with faulty(*script) as server, AsyncClient(server.url) as client:
        await put_one(client)
        await put_one(client)
        await client.count("c")
        await client.count("another")
    sent = server.headers("Session-Token")
    assert token.decode(sent[2]) == {SHARD: (1, 9), other: (1, 2)}
    assert sent[3] is None


async def test_a_collection_that_was_made_anew_has_a_new_session():
    again = ShardId("u2", 0)
    script = told((SHARD, (1, 9))), told((again, (1, 1))), gives({"count": 0})
    async with faulty(*script) as server, AsyncClient(server.url) as client:
        await put_one(client)
        await put_one(client)
        await client.count("c")
    assert token.decode(server.headers("Session-Token")[2]) == {again: (1, 1)}


async def test_an_error_of_a_later_batch_counts_rows_from_the_first():
    wrong = errors.InvalidRequest("bad", [{"index": 1, "id": "x", "field": "id", "reason": "is too long"}])
    async with faulty(gives({"upserted": 2}), refuses(wrong)) as server, AsyncClient(server.url) as client:
        with pytest.raises(errors.InvalidRequest) as caught:
            await client.upsert("c", list("abcd"), np.ones((4, 2)), batch_rows=2)
    assert caught.value.errors[0]["index"] == 3
    assert caught.value.extra["stored"] == 2


async def test_an_upload_is_cut_into_requests_and_reports_each():
    async def stored(request):
        rows = pa.ipc.open_stream(await request.read()).read_all().num_rows
        return web.json_response({"upserted": rows})

    seen = []
    async with faulty(stored) as server, AsyncClient(server.url) as client:
        done = await client.upload(
            "c", [(list("abcde"), np.ones((5, 2)), None)], progress=seen.append, rows_per_request=2, total=5
        )
    assert done.upserted == 5
    assert [(p.done, p.total) for p in seen] == [(2, 5), (4, 5), (5, 5)]
    assert len(set(server.headers("Operation-Id"))) == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e39])
async def test_numbers_that_json_cannot_carry_are_refused_before_they_are_sent(bad):
    async with faulty(STORED) as server, AsyncClient(server.url) as client:
        with pytest.raises(errors.InvalidRequest, match="row 1, position 0"):
            await client.upsert("c", ["a", "b"], [[1.0, 2.0], [bad, 1.0]])
        with pytest.raises(errors.InvalidRequest, match="position 1"):
            await client.search("c", [1.0, bad])
    assert server.requests == []


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([{"vector": [1.0]}], "id is missing"),
        ([{"id": "a"}], "vector is missing"),
        ([{"id": "a", "vector": [1.0], "colour": "red"}], "colour is not a field"),
        ([{"id": "a", "vector": [1.0]}, {"id": "b", "vector": [1.0, 2.0]}], "same length"),
        ([{"id": "a", "vector": "abc"}], "vectors"),
    ],
)
async def test_items_that_are_none_are_refused_with_what_would_be_right(items, words):
    async with AsyncClient(closed_port()) as client:
        with pytest.raises(errors.InvalidRequest, match=words):
            await client.upsert_items("c", items)


def test_the_blocking_client_may_be_shared_by_threads_and_closed_twice():
    from concurrent.futures import ThreadPoolExecutor

    async def serve(ready: asyncio.Future, stop: asyncio.Event):
        async with faulty(gives({"count": 7})) as server:
            ready.set_result(server.url)
            await stop.wait()

    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(9) as threads:
        threads.submit(loop.run_forever)
        ready, stop = loop.create_future(), asyncio.Event()
        serving = asyncio.run_coroutine_threadsafe(serve(ready, stop), loop)
        url = asyncio.run_coroutine_threadsafe(asyncio.wait_for(ready, 5), loop).result()
        with Client(url) as client:
            assert list(threads.map(lambda _: client.count("c"), range(50))) == [7] * 50
        client.close()
        with pytest.raises(RuntimeError, match="closed"):
            client.count("c")
        loop.call_soon_threadsafe(stop.set)
        serving.result(5)
        loop.call_soon_threadsafe(loop.stop)
    loop.close()


failures = st.one_of(
    st.just(NotSent("x")),
    st.just(Lost("x")),
    st.builds(
        Refused,
        st.just(errors.Unavailable("x")),
        st.sampled_from([429, 502, 503, 504]),
        st.none() | st.floats(0, 100),
    ),
)


@given(st.integers(1, 10_000), failures, st.floats(0, 1000), st.floats(0, 0.999))
def test_another_attempt_has_time_to_be_answered_and_no_pause_undercuts_what_the_server_asked_for(
    attempt, failure, left, jitter
):
    match retries.decide(attempt, failure, remaining=left, jitter=jitter):
        case Again(pause):
            assert 0 < pause < left - retries.ROOM
            assert pause >= (getattr(failure, "retry_after", None) or 0)


@given(st.integers(1, 10_000), st.sampled_from([400, 404, 409, 413, 415, 500, 507]), st.floats(0, 0.999))
def test_an_answer_that_would_stay_the_same_is_final(attempt, status, jitter):
    refused = Refused(errors.VecClusterError("x"), status)
    assert retries.decide(attempt, refused, remaining=1000, jitter=jitter) is None
