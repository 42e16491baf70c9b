"""One replica of one shard: how it agrees with the others, recovers, is built and is looked after."""
