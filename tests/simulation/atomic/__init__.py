"""Batches over several shards of one collection, on the same nodes, clock, network, disks and etcd (15).

Every shard is a shard of the plain simulation, with its own replicas, key, leader, clients and checks; a machine has a
replica of each. `run.simulate(seed)`, or `python -m simulation --atomic`.
"""
