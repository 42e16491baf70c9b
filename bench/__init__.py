"""Measurements of a whole cluster on this machine; never part of the tests."""
