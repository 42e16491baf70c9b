"""The etcd client with TLS and passwords, against real members that insist on them."""

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import aclosing

import pytest
import structlog
import trustme

from support.cluster import wait_until
from support.etcd import EtcdCluster
from support.nodes import Nodes
from veccluster.errors import InvalidSpec, MetadataRefused, MetadataUnavailable
from veccluster_etcd import Election, EtcdClient, NotAdmitted, Put

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


async def test_what_is_wrong_with_a_certificate_is_said_in_words_that_name_its_file(tls_cluster, tmp_path):
    right, stranger, junk = tls_cluster.config(), tmp_path / "stranger.pem", tmp_path / "junk.pem"
    trustme.CA().cert_pem.write_to_path(stranger)
    junk.write_text("no certificate")
    cases = [
        ({"ca_file": stranger}, f"was not issued by the authority in {stranger}, or is not valid now"),
        ({"cert_file": None, "key_file": None}, f"have a certificate, and there is none beside {right.ca_file}"),
        ({"ca_file": junk}, f"{junk}, .* must be PEM"),
    ]
    for wrong, why in cases:
        with pytest.raises(NotAdmitted, match=why):
            await EtcdClient(tls_cluster.config(timeout=0.7, **wrong)).connect()


async def test_certificates_that_are_renewed_are_used_without_a_new_client(tls_cluster, tmp_path):
    right, files = tls_cluster.config(), {f: tmp_path / f for f in ("ca_file", "cert_file", "key_file")}
    for name, path in files.items():
        shutil.copy(getattr(right, name), path)
    trustme.CA().cert_pem.write_to_path(files["ca_file"])
    client = EtcdClient(tls_cluster.config(timeout=0.7, **files))
    client.open()
    with pytest.raises(NotAdmitted):
        await client.get("/a")
    shutil.copy(right.ca_file, files["ca_file"])
    with pytest.raises(NotAdmitted):
        await client.get("/a")
    assert await client.get("/nothing") is None
    await client.close()


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


async def test_a_password_in_a_file_may_be_wrong_for_a_while(guarded, tmp_path):
    username, password = tmp_path / "username", tmp_path / "password"
    files = {"username_file": username, "password_file": password}
    username.write_text("changing")
    password.write_text("old-horse")
    guarded.ctl("user", "add", "changing:old-horse")
    guarded.ctl("user", "grant-role", "changing", "root")
    with structlog.testing.capture_logs() as logs:
        async with EtcdClient(guarded.config(**files)) as client, aclosing(client.follow("/r/")) as updates:
            await anext(updates)
            guarded.ctl("user", "passwd", "--interactive=false", "changing", stdin="new-horse")
            with pytest.raises(NotAdmitted, match=f"user name in {username} with the password in {password}"):
                await client.put("/r/a", b"")
            password.unlink()
            with pytest.raises(NotAdmitted, match="password is missing"):
                await client.put("/r/a", b"")
            password.write_text("new-horse")
            await client.put("/r/a", b"")
            assert (await anext(updates)).events[0].key == "/r/a"
    assert "horse" not in str(logs)


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


@pytest.mark.e2e
def test_a_node_at_rest_hears_that_its_password_is_refused_and_serves_on(tmp_path):
    username, password = tmp_path / "username", tmp_path / "password"
    username.write_text("node")
    password.write_text("old-horse")
    with EtcdCluster(1) as etcd:
        etcd.enable_auth(PASSWORD)
        etcd.ctl("user", "add", "node:old-horse")
        etcd.ctl("user", "grant-role", "node", "root")
        files = {"username_file": str(username), "password_file": str(password)}
        config = {"etcd": {"endpoints": etcd.endpoints, **files}}
        with Nodes(1, etcd=etcd, config=config) as nodes, nodes.client() as client:
            client.create_collection("words", dimension=2, metric="l2")
            client.upsert("words", ["a"], [[1.0, 2.0]])
            nodes.wait_healthy()
            etcd.ctl("user", "passwd", "--interactive=false", "node", stdin="new-horse")
            wait_until(lambda: "does not accept" in str(nodes.cluster(0).get("issues")), "the node to say so")
            assert client.get("words", "a").id == "a"
            client.upsert("words", ["b"], [[1.0, 2.0]])
            password.write_text("new-horse")
            nodes.wait_healthy()
