"""The shards of this node: opening, closing, deleting them, and answering for them."""
