"""HTTP: what clients and peers say to a node."""
