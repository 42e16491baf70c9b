"""An etcd that exists, with TLS and passwords: a wrong Secret is told in words, and correcting it heals."""

import base64
import json

import pytest
import trustme

from e2e.conftest import fresh_namespace
from e2e.support.database import Database, uid, vec_collection
from e2e.support.external_etcd import ExternalEtcd, certificates, everything_said, secret
from e2e.support.operator import NAMESPACE as OPERATOR_NAMESPACE
from e2e.support.traffic import Traffic
from e2e.waiting import wait_for

HEALED = 120
"""Seconds until a node has what a Secret holds now: the kubelet looks every minute or so."""

PEM = {"tls.key", "tls.crt"}
LOGIN, TLS = "login", "certificates"
LOGIN_FIELD, TLS_FIELD = "spec.metadata.credentialsSecret", "spec.metadata.tls.secretName"


@pytest.fixture(scope="module")
def namespace(cluster):
    """One for all tests."""
    with fresh_namespace(cluster, "external-etcd") as name:
        yield name


@pytest.fixture(scope="module")
def etcd(kubectl, namespace):
    started = ExternalEtcd(kubectl, namespace)
    started.start()
    kubectl.apply([secret(LOGIN, started.login()), secret(TLS, started.certificates())], namespace=namespace)
    return started


def metadata(etcd, login=LOGIN, tls=TLS):
    return {"endpoints": [etcd.url], "credentialsSecret": login, "tls": {"secretName": tls}}


@pytest.fixture(scope="module")
def database(kubectl, operator, etcd, namespace):
    """Two nodes with a collection."""
    found = Database(kubectl, namespace, "good")
    found.apply(nodes=2, metadata=metadata(etcd))
    kubectl.apply(vec_collection("points", "good"), namespace=namespace)
    return found


def same_processes(database):
    """Which pods there are and how often their containers were started."""
    return {uid(p): [c["restartCount"] for c in p["status"]["containerStatuses"]] for p in database.pods()}


def no_secret_is_told(kubectl, etcd, *more):
    """Neither objects nor events nor logs hold what a Secret holds."""
    hidden = {*more, etcd.password, etcd.root}
    for item in kubectl.items("secrets", namespace=etcd.namespace):
        told = {key: value for key, value in item["data"].items() if key != "ca.crt"}
        hidden |= {*told.values(), *(base64.b64decode(told[key]).decode().splitlines()[1] for key in {*told} & PEM)}
    said = everything_said(kubectl, etcd.namespace) | {
        f"operator: {where}": text for where, text in everything_said(kubectl, OPERATOR_NAMESPACE).items()
    }
    assert {where for where, text in said.items() for word in hidden if word in text} == set()
    assert any("etcd" in text for text in said.values())


def test_a_cluster_on_an_etcd_that_exists_stores_and_searches(kubectl, client, etcd, database):
    database.wait_until_healthy(120)
    kubectl("wait", "--for=condition=Ready", "veccollection/points", "--timeout=60s", namespace=database.namespace)
    vectors = [{"id": str(n), "vector": [n, 1, 0]} for n in range(20)]
    stored = client.ask(database, "POST", "/v1/collections/points/vectors", {"vectors": vectors})
    assert stored["status"] == 200, stored
    query = {"vector": [19, 1, 0], "k": 1}
    found = client.ask(database, "POST", "/v1/collections/points/search", query)["body"]["results"]
    assert [hit["id"] for hit in found] == ["19"]
    assert database.pods("etcd") == [], "no etcd of its own beside the one that was given"
    no_secret_is_told(kubectl, etcd)


class Wrong:
    """A cluster of one node one of whose Secrets is wrong."""

    def __init__(self, kubectl, etcd, name, *, login=LOGIN, tls=TLS, wrong=None, says, field):
        self.kubectl, self.etcd = kubectl, etcd
        self.database = Database(kubectl, etcd.namespace, name)
        self.login, self.tls, self.wrong, self.says, self.field = login, tls, wrong, says, field

    def apply(self):
        if self.wrong is not None:
            self.kubectl.apply(self.wrong, namespace=self.etcd.namespace)
        self.database.apply(metadata=metadata(self.etcd, self.login, self.tls))

    def correct(self):
        if self.login != LOGIN:
            right = secret(self.login, self.etcd.login())
        else:
            right = secret(self.tls, self.etcd.certificates())
        self.kubectl.apply(right, namespace=self.etcd.namespace)


def wrong_clusters(kubectl, etcd):
    stranger = certificates(trustme.CA(), "client.example.org")
    password, authority = "key password of Secret wrong-password", "key ca.crt of Secret wrong-authority"
    login = {"field": LOGIN_FIELD}
    return [
        Wrong(
            kubectl, etcd, "password", login="wrong-password", **login,
            wrong=secret("wrong-password", {**etcd.login(), "password": "guessed-in-vain"}),
            says=f"etcd does not accept the user name in key username of Secret wrong-password with the password in "
                 f"{password}",
        ),
        Wrong(
            kubectl, etcd, "key", login="no-password", **login,
            wrong=secret("no-password", {"username": etcd.login()["username"]}),
            says="key password of Secret no-password is missing",
        ),
        Wrong(
            kubectl, etcd, "login", login="no-login", **login,
            says="key username of Secret no-login is missing: Secret no-login is empty or does not exist",
        ),
        Wrong(
            kubectl, etcd, "authority", tls="wrong-authority", field=TLS_FIELD,
            wrong=secret("wrong-authority", {**etcd.certificates(), "ca.crt": stranger["ca.crt"]}),
            says=f"etcd's certificate was not issued by the authority in {authority}",
        ),
        Wrong(
            kubectl, etcd, "tls", tls="no-tls", field=TLS_FIELD,
            says="key ca.crt of Secret no-tls is missing: Secret no-tls is empty or does not exist",
        ),
    ]  # fmt: skip


def test_a_secret_that_is_wrong_or_missing_is_told_in_words_and_correcting_it_heals(kubectl, etcd, database):
    wrong = wrong_clusters(kubectl, etcd)
    for one in wrong:
        one.apply()
    for one in wrong:
        one.database.wait_until_told("0 of 1 nodes are ready", one.says, f"({one.field})", kind="Ready", within=90)
        assert one.database.condition("Ready")["reason"] == "NoAccessToEtcd"
    before = [same_processes(one.database) for one in wrong]
    assert [list(b.values()) for b in before] == [[[0]]] * len(wrong), "it waits, and does not start again and again"
    no_secret_is_told(kubectl, etcd, "guessed-in-vain")
    for one in wrong:
        one.correct()
    for one in wrong:
        one.database.wait_until_healthy(HEALED)
    assert [same_processes(one.database) for one in wrong] == before
    no_secret_is_told(kubectl, etcd, "guessed-in-vain")


def test_another_password_is_survived_while_reads_and_writes_go_on(kubectl, client, etcd, database):
    database.wait_until_healthy()
    before, old = same_processes(database), etcd.password
    with Traffic(client, database, "points") as traffic:
        traffic.goes_on()
        etcd.change_password()

        def told():
            return [i for i in database.status()["issues"] if "etcd does not accept" in i and LOGIN_FIELD in i]

        wait_for(told, 60, "the status to say that the password is wrong")
        assert database.condition("Ready")["status"] == "True"
        traffic.goes_on()
        kubectl.apply(secret(LOGIN, etcd.login()), namespace=etcd.namespace)
        database.wait_until_healthy(HEALED)
        traffic.goes_on()
    assert same_processes(database) == before
    made = client.ask(database, "PUT", "/v1/collections/more", {"dimension": 3, "metric": "cosine"})
    assert made["status"] == 201, json.dumps(made)
    no_secret_is_told(kubectl, etcd, old)
