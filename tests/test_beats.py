"""Node heartbeats stand for those of shards at rest: what differs wakes, and nothing else does."""

from dataclasses import dataclass, field

from veccluster.decisions.replication.values import Member
from veccluster.model.state import Epoch, Incarnation, NodeId, Seq, ShardId
from veccluster_node.peer import wire
from veccluster_node.replica.beats import Differing, NodeBeat, NodeBeats, Resting, Token, token

HERE, THERE, ELSEWHERE = (Member(NodeId(f"n{i}"), Incarnation(f"disk{i}")) for i in range(3))
SHARDS = [ShardId("c", number) for number in range(1000)]
SILENCE, BEAT = 1.5, 0.5


@dataclass
class Time:
    now: float = 100.0


@dataclass
class Nodes:
    """Two nodes and what is sent between them, at once; n0 has the primaries."""

    time: Time = field(default_factory=Time)
    sent: list[NodeBeat] = field(default_factory=list)
    woken: list[ShardId] = field(default_factory=list)
    is_cut: bool = False
    has_ended: bool = False
    is_older: bool = False
    """Whether n1 does not know these messages."""

    def __post_init__(self) -> None:
        self.here = NodeBeats(self._to_there, self.woken.append, lambda: self.time.now, SILENCE)
        self.there = self.new_process()

    def new_process(self) -> NodeBeats:
        return NodeBeats(self._to_here, lambda shard: None, lambda: self.time.now, SILENCE)

    def _to_there(self, node: NodeId, beat: NodeBeat) -> None:
        self.sent.append(beat)
        if not self.is_cut and not self.is_older:
            self.there.received(HERE.node, beat)

    def _to_here(self, node: NodeId, beat: NodeBeat) -> None:
        self.here.received(THERE.node, beat)

    def pass_time(self, seconds: float) -> None:
        until = self.time.now + seconds
        while self.time.now < until:
            self.time.now += BEAT
            self.here.tick({THERE.node}, lambda _: self.has_ended)

    def rest_all(self) -> None:
        self.pass_time(BEAT)
        for shard in SHARDS:
            self.there.follow(shard, HERE, of(shard))
            assert self.here.rest(shard, {THERE: of(shard)})


def of(shard: ShardId, last: int = 7, member: Member = THERE) -> Token:
    return token(shard, Epoch(3), HERE, member, Seq(last))


def test_a_thousand_shards_at_rest_are_one_message_a_beat_and_nobody_wakes() -> None:
    nodes = Nodes()
    nodes.rest_all()
    nodes.sent.clear()
    nodes.pass_time(60)
    assert len(nodes.sent) == 120
    assert nodes.woken == []
    assert nodes.here.resume(SHARDS[0]) == {THERE.node: nodes.time.now}, "it was heard with the last beat"
    assert nodes.there.primary_heard(SHARDS[1]) == nodes.time.now


def test_only_those_wake_that_differ() -> None:
    nodes = Nodes()
    nodes.rest_all()
    nodes.there.follow(SHARDS[5], HERE, of(SHARDS[5], last=6))
    nodes.there.follow(SHARDS[6], None, None)
    nodes.there.follow(SHARDS[7], ELSEWHERE, of(SHARDS[7]))
    nodes.pass_time(BEAT)
    assert sorted(nodes.woken) == SHARDS[5:8]
    assert nodes.there.primary_heard(SHARDS[5]) == 0


def test_a_node_that_was_started_again_wakes_all_that_rested_with_it() -> None:
    nodes = Nodes()
    nodes.rest_all()
    nodes.there = nodes.new_process()
    nodes.pass_time(BEAT)
    assert sorted(nodes.woken) == SHARDS


def test_silence_wakes_all_and_says_how_long_it_has_lasted() -> None:
    nodes = Nodes()
    nodes.rest_all()
    nodes.pass_time(10)
    nodes.is_cut, last = True, nodes.time.now
    nodes.pass_time(SILENCE)
    assert nodes.woken == []
    nodes.pass_time(BEAT)
    assert sorted(nodes.woken) == SHARDS
    assert nodes.here.resume(SHARDS[0]) == {THERE.node: last}


def test_a_node_whose_process_has_ended_wakes_all_at_once() -> None:
    nodes = Nodes()
    nodes.rest_all()
    nodes.has_ended = True
    nodes.pass_time(BEAT)
    assert sorted(nodes.woken) == SHARDS


def test_what_this_process_overslept_counts_for_nobody() -> None:
    nodes = Nodes()
    nodes.rest_all()
    nodes.pass_time(BEAT)
    nodes.time.now += 100
    nodes.is_cut = True
    nodes.pass_time(SILENCE)
    assert nodes.woken == []


def test_nothing_rests_with_a_node_that_does_not_answer_be_it_of_an_older_version() -> None:
    nodes = Nodes(is_older=True)
    nodes.pass_time(10)
    assert not nodes.here.rest(SHARDS[0], {THERE: of(SHARDS[0])})
    nodes.is_older = False
    nodes.pass_time(BEAT)
    assert nodes.here.rest(SHARDS[0], {THERE: of(SHARDS[0])})
    assert not nodes.here.rest(SHARDS[1], {THERE: of(SHARDS[1]), ELSEWHERE: of(SHARDS[1], member=ELSEWHERE)})
    assert nodes.here.rest(SHARDS[2], {}), "the only copy needs nobody's word"


def test_who_wakes_is_named_no_more_and_what_was_not_confirmed_does_not_count() -> None:
    nodes = Nodes()
    nodes.rest_all()
    assert nodes.here.resume(SHARDS[0]) == {}, "no beat has named it yet"
    nodes.pass_time(BEAT)
    beat = nodes.sent[-1]
    assert isinstance(beat, Resting)
    assert len(beat.tokens) == len(SHARDS) - 1


def test_the_messages_travel_as_others_do() -> None:
    for beat in (Resting(3, (1, 2**64 - 1)), Differing(4, (7,))):
        assert list(wire.decode(wire.frame([wire.encode(wire.NO_SHARD, beat)]))) == [(wire.NO_SHARD, beat)]
