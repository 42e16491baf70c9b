"""The values that the parts of a cluster exchange: what is asked for, and what is."""
