"""What the etcd client decides without asking anybody: verdicts, rotation, ranges, differences, configuration."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veccluster.errors import InvalidSpec
from veccluster.model.state import Revision
from veccluster_etcd import NO_LEASE, EtcdConfig, Event, KeyValue, Listing
from veccluster_etcd.listing import next_page
from veccluster_etcd.members import Rotation
from veccluster_etcd.verdicts import Verdict, judge, may_repeat
from veccluster_etcd.watch import differences
from veccluster_etcd.wire import KeyRange, to_bytes, to_key

LEFT_OPEN = [
    ("UNAVAILABLE", "Socket closed"),
    ("UNAVAILABLE", "recvmsg:Connection reset by peer"),
    ("UNAVAILABLE", "keepalive watchdog timeout"),
    ("UNAVAILABLE", "etcdserver: request timed out"),
    ("UNAVAILABLE", "etcdserver: request timed out, possibly due to previous leader failure"),
    ("UNAVAILABLE", "etcdserver: leader changed"),
    ("UNAVAILABLE", "etcdserver: server stopped"),
    ("DEADLINE_EXCEEDED", "Deadline Exceeded"),
    ("CANCELLED", "RST_STREAM with error code 8"),
    ("UNKNOWN", "something new"),
    ("INTERNAL", "transport broke"),
]
NEVER_DONE = [
    ("UNAVAILABLE", "etcdserver: no leader"),
    ("UNAVAILABLE", "etcdserver: rpc not supported for learner"),
    ("RESOURCE_EXHAUSTED", "etcdserver: too many requests"),
    ("UNAVAILABLE", "failed to connect to all addresses; last error: UNKNOWN: Connection refused"),
    ("UNAVAILABLE", "errors resolving etcd-0.etcd:2379: Domain name not found"),
    ("UNAUTHENTICATED", "etcdserver: invalid auth token"),
    ("INVALID_ARGUMENT", "etcdserver: user name is empty"),
    ("INVALID_ARGUMENT", "etcdserver: revision of auth store is old"),
]
REFUSED = [
    ("PERMISSION_DENIED", "etcdserver: permission denied"),
    ("INVALID_ARGUMENT", "etcdserver: request is too large"),
    ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded"),
    ("NOT_FOUND", "etcdserver: requested lease not found"),
    ("INVALID_ARGUMENT", "etcdserver: authentication failed, invalid user ID or password"),
]


@pytest.mark.parametrize(("code", "details"), LEFT_OPEN)
def test_a_write_that_may_have_happened_is_never_sent_again_but_a_read_is(code, details):
    verdict = judge(code, details)
    assert not may_repeat(verdict, repeatable=False)
    assert may_repeat(verdict, repeatable=True)


@pytest.mark.parametrize(("code", "details"), NEVER_DONE)
def test_a_write_that_was_certainly_not_applied_is_sent_again(code, details):
    assert may_repeat(judge(code, details), repeatable=False)


@pytest.mark.parametrize(("code", "details"), REFUSED)
def test_a_no_is_taken_for_an_answer(code, details):
    assert judge(code, details) is Verdict.refused
    assert not may_repeat(Verdict.refused, repeatable=True)


@given(code=st.text(), details=st.text())
def test_an_error_nobody_has_heard_of_never_makes_a_write_go_out_twice(code, details):
    assert not may_repeat(judge(code, details), repeatable=False) or code == "UNAUTHENTICATED"


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_member_that_answers_is_kept():
    rotation = Rotation(3, start=1)
    for _ in range(10):
        rotation.answered(rotation.current)
    assert rotation.current == 1


def test_a_member_that_failed_is_left_for_one_that_did_not_and_used_again_after_a_rest():
    clock = Clock()
    rotation = Rotation(2, start=0, clock=clock)
    rotation.failed(0)
    assert rotation.current == 1
    rotation.answered(1)
    clock.now = 60.0
    rotation.failed(1)
    assert rotation.current == 0


@given(count=st.integers(1, 5), seconds=st.lists(st.floats(0, 0.2), min_size=5, max_size=40))
def test_while_all_members_fail_each_of_them_is_tried_again_and_again(count, seconds):
    clock = Clock()
    rotation = Rotation(count, start=0, clock=clock)
    asked = []
    for step in seconds:
        asked.append(rotation.current)
        rotation.failed(rotation.current)
        clock.now += step
    assert set(asked[-3 * count :]) == set(range(count)) or len(asked) < 3 * count


def test_members_may_fail_for_as_long_as_they_like():
    clock = Clock()
    rotation = Rotation(2, start=0, clock=clock)
    for _ in range(5_000):
        rotation.failed(rotation.current)
        clock.now += 1.0
    rotation.answered(0)
    assert rotation.failed(0)


def test_only_the_first_failure_in_a_row_is_news():
    rotation = Rotation(2, start=0)
    assert [rotation.failed(0), rotation.failed(0)] == [True, False]
    rotation.answered(0)
    assert rotation.failed(0)


def _within(key: bytes, keys: KeyRange) -> bool:
    return key >= keys.start and (keys.end == b"\x00" or key < keys.end)


@given(prefix=st.text(max_size=4), other=st.text(min_size=1, max_size=6))
def test_a_prefix_range_holds_the_keys_that_start_with_it_and_no_others(prefix, other):
    keys = KeyRange.prefix(prefix)
    assert _within(to_bytes(prefix + other), keys)
    assert _within(to_bytes(other), keys) == to_bytes(other).startswith(to_bytes(prefix))


@given(raw=st.binary(min_size=1))
def test_a_key_that_is_not_utf8_survives_the_way_there_and_back(raw):
    assert to_bytes(to_key(raw)) == raw
    keys = KeyRange.prefix(to_key(raw))
    assert _within(raw + b"\xff", keys)


@given(keys=st.integers(1, 5000), size=st.integers(0, 1 << 30))
def test_the_next_page_asks_for_something_and_for_no_more_than_a_few_megabytes(keys, size):
    page = next_page(keys, size)
    assert page >= 1
    assert page == 1 or page * size / keys <= (4 << 20)


def _kv(key: str, revision: int) -> KeyValue:
    return KeyValue(key, b"", Revision(revision), Revision(revision), 1, NO_LEASE)


@given(
    before=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 20)),
    after=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 40)),
)
def test_the_differences_after_a_compaction_lead_from_what_was_seen_to_what_is_and_say_nothing_twice(before, after):
    listing = Listing(tuple(_kv(k, r) for k, r in sorted(after.items())), Revision(50))
    seen = dict(before)
    events = differences({k: Revision(r) for k, r in before.items()}, listing)
    for event in events:
        assert before.get(event.key) != event.revision
        if event.now is None:
            del seen[event.key]
        else:
            seen[event.key] = event.revision
    assert seen == after
    assert len({e.key for e in events}) == len(events)
    assert [e.revision for e in events] == sorted(e.revision for e in events)


def test_a_key_that_did_not_change_is_not_a_difference():
    assert differences({"a": Revision(3)}, Listing((_kv("a", 3),), Revision(9))) == ()
    assert differences({"a": Revision(3)}, Listing((), Revision(9))) == (Event("a", Revision(9), None),)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"endpoints": ()}, "endpoints"),
        ({"endpoints": ("localhost",)}, "endpoints"),
        ({"endpoints": ("localhost:99999",)}, "endpoints"),
        ({"endpoints": ("unix:///etcd",)}, "endpoints"),
        ({"endpoints": ("http://a:1", "https://b:1")}, "endpoints"),
        ({"endpoints": ("http://a:1/path",)}, "endpoints"),
        ({"endpoints": ("a:1",), "cert_file": "c.pem"}, "cert_file"),
        ({"endpoints": ("http://a:1",), "ca_file": "ca.pem"}, "ca_file"),
        ({"endpoints": ("a:1",), "username": "root"}, "username"),
        ({"endpoints": ("a:1",), "timeout": 0}, "timeout"),
        ({"endpoints": ("a:1",), "watch_silence": float("nan")}, "watch_silence"),
    ],
)
def test_a_wrong_configuration_names_the_field(wrong, field):
    with pytest.raises(InvalidSpec) as caught:
        EtcdConfig(**wrong)
    assert caught.value.errors[0]["field"] == field


def test_endpoints_may_be_addresses_or_urls():
    config = EtcdConfig(endpoints=("https://etcd-0.etcd:2379/", "https://[::1]:2379"))
    assert config.addresses == ("etcd-0.etcd:2379", "[::1]:2379")
    assert config.uses_tls


def test_a_password_is_never_shown():
    config = EtcdConfig(endpoints=("a:1",), username="root", password="correct horse")
    assert "horse" not in repr(config)
    with pytest.raises(InvalidSpec) as caught:
        EtcdConfig(endpoints=("http://root:horse@a:1",))
    assert "horse" not in str(caught.value.problem())
