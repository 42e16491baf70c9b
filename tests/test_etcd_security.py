"""The etcd client with TLS and passwords, against real members that insist on them."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing

import pytest
import structlog

from support.etcd import EtcdCluster
from veccluster.errors import InvalidSpec, MetadataRefused, MetadataUnavailable
from veccluster_node.metadata.etcd import Election, EtcdClient, Put

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def tls_cluster() -> Iterator[EtcdCluster]:
    with EtcdCluster(1, tls=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def guarded() -> Iterator[EtcdCluster]:
    """Asks for a password, and forgets its tokens after a second or two."""
    with EtcdCluster(1, etcd_args=["--auth-token-ttl=1"]) as cluster:
        cluster.enable_auth(PASSWORD)
        yield cluster


async def test_with_the_right_certificates_the_connection_is_encrypted(tls_cluster):
    async with EtcdClient(tls_cluster.config()) as client:
        await client.put("/a", b"secret")
        assert (await client.get("/a")).value == b"secret"


async def test_without_a_client_certificate_or_with_a_strange_authority_there_is_no_connection(tls_cluster):
    right = tls_cluster.config()
    for wrong in ({"cert_file": None, "key_file": None}, {"ca_file": right.cert_file}):
        with pytest.raises(MetadataUnavailable):
            async with EtcdClient(tls_cluster.config(timeout=0.5, **wrong)) as client:
                await client.get("/a")


async def test_a_certificate_file_that_is_not_there_is_named(tls_cluster, tmp_path):
    with pytest.raises(InvalidSpec, match=r"missing\.pem"):
        await EtcdClient(tls_cluster.config(ca_file=tmp_path / "missing.pem")).connect()


async def test_everything_goes_on_when_the_token_expires(guarded):
    async with EtcdClient(guarded.config(username="root", password=PASSWORD)) as client:
        lease = await client.grant(2)
        term = await Election(client, "/leader", lease, b"").campaign()
        async with aclosing(client.follow("/p/")) as updates:
            await anext(updates)
            for n in range(2):
                assert (await client.txn([term.fence()], [Put("/p/a", b"%d" % n)])).succeeded
                assert (await anext(updates)).events[0].now.value == b"%d" % n
                await asyncio.sleep(2.1)  # the token expires
        async with aclosing(client.watch("/p/")) as watch:
            await anext(watch)
        await lease.revoke()


async def test_everything_goes_on_when_a_member_forgets_all_tokens(guarded):
    config = guarded.config(username="root", password=PASSWORD, timeout=10)
    async with EtcdClient(config) as client, aclosing(client.follow("/q/")) as updates:
        await anext(updates)
        guarded.kill(0)
        guarded.start(0)
        await asyncio.gather(*(client.put(f"/q/{n}", b"") for n in range(20)))
        seen = 0
        while seen < 20:
            seen += len((await anext(updates)).events)


async def test_a_wrong_password_is_refused_at_once_and_nobody_logs_it(guarded):
    with structlog.testing.capture_logs() as logs, pytest.raises(MetadataRefused, match="password") as caught:
        await EtcdClient(guarded.config(username="root", password="wrong horse")).connect()
    assert "horse" not in f"{logs} {caught.value.problem()}"


async def test_a_client_without_a_password_is_told_that_one_is_wanted(guarded):
    with pytest.raises(MetadataRefused, match="wants a user name and password"):
        await EtcdClient(guarded.config()).connect()


async def test_what_a_user_may_not_do_is_refused(guarded):
    async with EtcdClient(guarded.config(username="reader", password=PASSWORD)) as reader:
        assert (await reader.range("/open/")).items == ()
        async with aclosing(reader.watch("/open/")) as watch:
            await anext(watch)
        with pytest.raises(MetadataRefused, match="permission denied"):
            await reader.put("/open/a", b"")
        with pytest.raises(MetadataRefused, match="permission denied"):
            await reader.get("/closed")
        with pytest.raises(MetadataRefused, match="permission denied"):
            await anext(reader.watch("/closed/"))


async def test_a_password_does_no_harm_where_none_is_asked_for():
    with EtcdCluster(1) as cluster:
        async with EtcdClient(cluster.config(username="root", password=PASSWORD)) as client:
            await client.put("/a", b"")
            cluster.enable_auth(PASSWORD)
            await client.put("/a", b"")
