"""Clusters of all shapes for the tests of decisions: zones, nodes, collections, their shards."""

from hypothesis import strategies as st

from veccluster.model.state import Node, NodeId, ShardId


def node(name: str, zone: str = "") -> Node:
    return Node(id=NodeId(name), address=f"{name}:8001", peer_address=f"{name}:8002", zone=zone)


def shards_of(collection: str, count: int) -> list[ShardId]:
    return [ShardId(collection, i) for i in range(count)]


@st.composite
def nodes(draw: st.DrawFn, min_size: int = 1, max_size: int = 9, zones: st.SearchStrategy[int] | int = 0) -> list[Node]:
    """Nodes in any order, dealt to that many zones at random; 0 is no zones."""
    count = zones if isinstance(zones, int) else draw(zones)
    size = draw(st.integers(min_size, max_size))
    names = draw(st.permutations([f"demo-{i}" for i in range(size)]))
    places = st.sampled_from([f"zone-{z}" for z in range(count)]) if count else st.just("")
    return [node(name, draw(places)) for name in names]


@st.composite
def shards(draw: st.DrawFn, max_collections: int = 12, max_shards: int = 12) -> list[ShardId]:
    """All shards of some collections, in any order."""
    sizes = draw(st.lists(st.integers(1, max_shards), min_size=1, max_size=max_collections))
    seed = draw(st.integers(0, 10**6))
    return draw(st.permutations([s for i, n in enumerate(sizes) for s in shards_of(f"c{seed}-{i}", n)]))
