"""What one shard replica keeps on disk: log, records, generations, and the tail above them."""
