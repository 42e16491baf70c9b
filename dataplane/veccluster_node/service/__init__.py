"""The port between who coordinates a request and who has the shards."""
