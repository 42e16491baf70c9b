"""Searching: within one shard, and over all shards of a collection."""
