"""One shard, its nodes, an etcd and clients on a simulated clock, network and disk, all from one seed.

The replicas and the leader's decisions are the ones of the product (veccluster.decisions.replication). A run is
`run.simulate(seed)`; a `checks.Violation` says what was promised and not kept, and how to see it again.
"""
