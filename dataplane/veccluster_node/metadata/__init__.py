"""Metadata: an etcd client of our own, and the keys of a cluster above it."""
