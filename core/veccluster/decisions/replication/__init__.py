"""Replication of one shard as pure state machines, and the leader's decisions about its members.

Events in, effects out, both frozen values; the numbers in the comments are the rules of docs/replication.md. The
machines know the shape of a log (which epoch wrote which seq), never its contents, so that the same code runs in a
node over gigabytes and in the simulation (tests/simulation) over a list.
"""
