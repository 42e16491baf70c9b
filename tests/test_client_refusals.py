"""What the client refuses before anything is sent, and answers that do not fit what was asked; blocking and asyncio."""

import inspect

import numpy as np
import orjson
import pytest
from aiohttp import web

from support.faulty import faulty, gives, refuses
from veccluster import AsyncClient, Client, errors

ONE = [[1.0, 2.0]]
NAN = float("nan")

TEXT_FOR_A_LIST = [
    ("ids", lambda c, text: c.upsert("c", text, [[1.0], [2.0]])),
    ("metadata", lambda c, text: c.upsert("c", ["1", "2"], [[1.0], [2.0]], text)),
    ("vectors", lambda c, text: c.upsert("c", ["1", "2"], text)),
    ("items", lambda c, text: c.upsert_items("c", text)),
    ("source", lambda c, text: c.upload("c", text)),
    ("ids", lambda c, text: c.upload("c", [(text, [[1.0], [2.0]], None)])),
    ("metadata", lambda c, text: c.upload("c", [(["1", "2"], [[1.0], [2.0]], text)])),
    ("ids", lambda c, text: c.delete("c", text)),
    ("ids", lambda c, text: c.get_many("c", text)),
    ("include", lambda c, text: c.get_many("c", ["1"], include=text)),
    ("include", lambda c, text: c.search("c", [1.0], include=text)),
    ("include", lambda c, text: c.search_many("c", [[1.0]], include=text)),
    ("vector", lambda c, text: c.search("c", text)),
    ("vectors", lambda c, text: c.search_many("c", text)),
    ("filterable", lambda c, text: c.create_collection("c", 2, filterable=text)),
]
"""Each argument that is a list, and the method that has it."""

TEXT_FOR_AN_OBJECT = [
    ("filter", lambda c, text: c.delete("c", filter=text)),
    ("filter", lambda c, text: c.count("c", filter=text)),
    ("filter", lambda c, text: c.page("c", filter=text)),
    ("filter", lambda c, text: c.search("c", [1.0], filter=text)),
    ("filter", lambda c, text: c.search_many("c", [[1.0]], filter=text)),
    ("index", lambda c, text: c.create_collection("c", 2, index=text)),
    ("items[0]", lambda c, text: c.upsert_items("c", [text])),
]

NOT_FINITE = [
    ("metadata.a", lambda c: c.upsert("c", ["1", "2"], [[1.0], [2.0]], [None, {"a": NAN}])),
    ("metadata.a", lambda c: c.upsert_items("c", [{"id": "1", "vector": [1.0], "metadata": {"a": NAN}}])),
    ("metadata.a", lambda c: c.upload("c", [(["1"], [[1.0]], [{"a": NAN}])])),
    ("filter.a.$gt", lambda c: c.search("c", [1.0], filter={"a": {"$gt": NAN}})),
    ("filter.a.$gt", lambda c: c.search_many("c", [[1.0]], filter={"a": {"$gt": -float("inf")}})),
    ("filter.a.$in[1]", lambda c: c.count("c", filter={"a": {"$in": [None, NAN]}})),
    ("filter.a", lambda c: c.delete("c", filter={"a": NAN})),
    ("filter.a", lambda c: c.page("c", filter={"a": NAN})),
]


async def refused(url, call):
    """The error that both clients give."""
    found = []
    async with AsyncClient(url) as client:
        with pytest.raises(errors.InvalidRequest) as caught:
            await call(client)
        found.append(caught.value)
    with Client(url) as blocking, pytest.raises(errors.InvalidRequest) as caught:
        call(blocking)
    found.append(caught.value)
    assert str(found[0]) == str(found[1])
    return found[0]


@pytest.mark.parametrize("text", ["12", b"12", np.str_("12")], ids=lambda t: type(t).__name__)
async def test_no_argument_that_is_a_list_takes_a_text_for_one(text):
    async with faulty(gives({})) as server:
        for field, call in TEXT_FOR_A_LIST:
            error = await refused(server.url, lambda client, call=call: call(client, text))
            (said,) = error.errors
            assert said["field"] == field
            assert said["reason"].endswith("is bytes" if isinstance(text, bytes) else "is a string")
    assert server.requests == []


async def test_no_argument_that_is_an_object_takes_a_text_for_one():
    async with faulty(gives({})) as server:
        for field, call in TEXT_FOR_AN_OBJECT:
            error = await refused(server.url, lambda client, call=call: call(client, "12"))
            assert error.errors[0] == {"field": field, "reason": "must be an object, is a string"}
    assert server.requests == []


def test_every_argument_that_is_a_list_is_in_the_tests_above():
    tried = {field for field, _ in TEXT_FOR_A_LIST}
    for name, method in inspect.getmembers(AsyncClient, inspect.iscoroutinefunction):
        for argument, parameter in inspect.signature(method).parameters.items():
            if not name.startswith("_") and (
                "Sequence" in str(parameter.annotation) or "Iterable" in str(parameter.annotation)
            ):
                assert argument in tried, f"{name}({argument})"


@pytest.mark.parametrize("servers", [b"http://127.0.0.1:1", [b"http://127.0.0.1:1"], 8001, {"a": 1}, [8001]])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_addresses_are_texts(kind, servers):
    with pytest.raises(errors.InvalidRequest, match="servers"):
        kind(servers)


@pytest.mark.parametrize("wrong", [7, b"a", None, "\ud800"])
async def test_ids_and_names_are_texts(wrong):
    async with faulty(gives({})) as server:
        for field, call in [
            ("id", lambda client: client.get("c", wrong)),
            ("id", lambda client: client.upsert("c", ["a", wrong], [[1.0], [2.0]])),
            ("ids[1]", lambda client: client.delete("c", ["a", wrong])),
            ("ids[1]", lambda client: client.get_many("c", ["a", wrong])),
            ("include[0]", lambda client: client.search("c", [1.0], include=[wrong])),
            ("collection", lambda client: client.collection(wrong)),
        ]:
            error = await refused(server.url, call)
            assert error.errors[0]["field"] == field
    assert server.requests == []


async def test_what_is_not_finite_is_refused_wherever_it_is_and_nothing_is_sent():
    async with faulty(gives({})) as server:
        for field, call in NOT_FINITE:
            error = await refused(server.url, call)
            assert error.errors[0]["field"] == field
            assert error.errors[0]["reason"].startswith("must be a finite number")
    assert server.requests == []


async def test_every_bad_row_is_listed_before_any_is_stored():
    metadata = [{"a": 1 << 64} if i % 2 else "text" for i in range(250)]
    async with faulty(gives({})) as server, AsyncClient(server.url) as client:
        with pytest.raises(errors.InvalidRequest) as caught:
            await client.upsert("c", [str(i) for i in range(250)], np.ones((250, 2)), metadata, batch_rows=10)
    assert server.requests == []
    listed = caught.value.errors
    assert len(listed) == 100 and caught.value.extra["more_errors"] == 150
    assert listed[0] == {"index": 0, "id": "0", "field": "metadata", "reason": "must be an object, is a string"}
    assert listed[1]["field"] == "metadata.a" and "at most 64 bits" in listed[1]["reason"]
    assert str(caught.value).startswith("vector 0: metadata must be an object, is a string (and 249 more)")


# ---- answers that do not fit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lists", [0, 2, 6])
async def test_as_many_queries_as_were_sent_are_answered(lists):
    answer = gives({"results": [[]] * lists, "partial": False, "missing_shards": [], "took_ms": 1.0})
    async with faulty(answer) as server, AsyncClient(server.url) as client:
        with pytest.raises(
            errors.VecClusterError, match=f"3 queries of 8 numbers were sent, and {lists} were answered"
        ):
            await client.search_many("c", np.ones((3, 8), np.float32))


@pytest.mark.parametrize("stored", [0, 1, 4])
async def test_as_many_rows_as_were_sent_are_stored(stored):
    async with faulty(gives({"upserted": stored, "token": ""})) as server, AsyncClient(server.url) as client:
        for write in (
            lambda: client.upsert("c", list("ab"), np.ones((2, 8))),
            lambda: client.upload("c", [(list("ab"), np.ones((2, 8)), None)]),
        ):
            with pytest.raises(errors.VecClusterError, match=f"2 rows were sent, .* stored {stored}"):
                await write()


# ---- sizes -----------------------------------------------------------------------------------------------------------


def takes_at_most(size):
    async def answer(request):
        body = await request.read()
        if len(body) > size:
            return await refuses(errors.PayloadTooLarge(f"at most {size} bytes"))(request)
        return web.json_response({"upserted": len(orjson.loads(body)["vectors"])})

    return answer


async def test_upserts_are_cut_where_the_node_takes_less_at_once():
    ids = [f"r{i}" for i in range(100)]
    async with faulty(takes_at_most(1_000)) as server, AsyncClient(server.url) as client:
        assert (await client.upsert("c", ids, np.ones((100, 8)))).upserted == 100
        stored = [orjson.loads(body)["vectors"] for *_, body in server.requests if len(body) <= 1_000]
        assert [item["id"] for batch in stored for item in batch] == ids
        assert len(set(server.headers("Operation-Id"))) == len(server.requests)
        with pytest.raises(errors.PayloadTooLarge):
            await client.upsert("c", ids, np.ones((100, 8)), atomic=True)
        with pytest.raises(errors.PayloadTooLarge) as caught:
            await client.upsert("c", ["a", "b"], np.ones((2, 8)), [None, {"a": "x" * 1_000}])
        assert caught.value.extra["stored"] == 1


async def test_upserts_have_no_more_than_some_8_mib():
    metadata = [{"a": "x" * 60_000}] * 300
    async with faulty(takes_at_most(9 << 20)) as server, AsyncClient(server.url) as client:
        assert (await client.upsert("c", [str(i) for i in range(300)], np.ones((300, 2)), metadata)).upserted == 300
    assert len(server.requests) == 3
