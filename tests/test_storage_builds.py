"""Which generations are built: few graphs for a search, few builds for a vector, and an end to deciding."""

from hypothesis import given
from hypothesis import strategies as st

from veccluster.decisions.generations import Build, GenerationLimits, GenerationState, ShardState, decide

LIMITS = GenerationLimits()


def shard(*generations, tail=0, live=None, seconds=0.0, log=0):
    return ShardState(generations, tail, tail if live is None else live, seconds, tail, log)


def after(state: ShardState, build: Build) -> ShardState:
    """The state that a build leaves, if nothing is written meanwhile."""
    merged = state.generations[build.first : build.last]
    live = sum(g.live for g in merged) + (state.tail_live if build.tail else 0)
    base = state.generations[build.base] if build.base is not None else None
    made = GenerationState(live, 0, base.dead + base.ghosts if base else 0, graph=build.graph)
    generations = (*state.generations[: build.first], made, *state.generations[build.last :])
    return shard(*generations) if build.tail else ShardState(generations, *_tail(state))


def _tail(state):
    return state.tail_rows, state.tail_live, state.tail_seconds, state.tail_operations, state.log_bytes


generation = st.builds(
    GenerationState,
    live=st.integers(0, 1_000_000),
    dead=st.integers(0, 400_000),
    ghosts=st.integers(0, 100_000),
    graph=st.booleans(),
    damaged=st.booleans(),
)
states = st.builds(
    lambda generations, tail, part, seconds, log: shard(
        *generations, tail=tail, live=int(tail * part), seconds=seconds, log=log
    ),
    st.lists(generation, max_size=8),
    st.integers(0, 2_000_000),
    st.floats(0, 1),
    st.floats(0, 1000),
    st.integers(0, 1 << 30),
)


@given(states)
def test_deciding_comes_to_an_end_with_nothing_damaged_no_tail_and_little_waste(state):
    for _ in range(40):
        if (build := decide(state)) is None:
            break
        assert build.first <= build.last <= len(state.generations)
        assert build.base is None or (build.first <= build.base < build.last and build.graph)
        state = after(state, build)
    assert decide(state) is None
    assert not any(g.damaged or g.wasted > LIMITS.max_wasted for g in state.generations)
    assert state.tail_rows <= LIMITS.tail_rows
    assert state.tail_operations == 0 or state.log_bytes <= LIMITS.log_bytes


def test_a_small_shard_needs_no_generation():
    assert decide(shard(tail=2000)) is None


def test_a_bulk_load_puts_each_vector_into_few_graphs_and_a_search_walks_few():
    state, inserted, copied = shard(), 0, 0
    for _ in range(250):
        state = ShardState(state.generations, *_tail(shard(tail=state.tail_rows + 4200)))
        while build := decide(state):
            merged = state.generations[build.first : build.last]
            kept = state.generations[build.base].live if build.base is not None else 0
            total = sum(g.live for g in merged) + (state.tail_live if build.tail else 0)
            inserted, copied = inserted + total - kept, copied + total
            state = after(state, build)
        assert len(state.generations) <= 5
    rows = 250 * 4200
    assert sum(g.live for g in state.generations) == rows
    assert inserted <= 2.5 * rows
    assert copied <= 40 * rows


def test_a_generation_with_too_many_dead_is_built_from_its_vectors():
    dying = GenerationState(live=7000, dead=3000)
    assert decide(shard(dying)) == Build(0, 1, tail=False, base=None, graph=True, reason="30% of it is dead")


def test_ids_that_are_replaced_all_the_time_do_not_grow_the_tail_for_ever():
    build = decide(shard(tail=5000, live=50))
    assert build
    assert build.tail
    assert not build.graph


def test_a_long_log_asks_for_a_build_however_small_the_tail():
    build = decide(shard(tail=10, log=LIMITS.log_bytes + 1))
    assert build
    assert build.tail


def test_no_generation_grows_beyond_the_limit_by_merging():
    full = GenerationState(live=990_000, dead=0)
    build = decide(shard(full, tail=50_000))
    assert build
    assert (build.first, build.last) == (1, 1)
