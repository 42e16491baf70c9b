"""One data node: what it is made of, and the loops that keep it a member of its cluster."""
