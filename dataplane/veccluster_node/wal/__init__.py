"""The log of a replica and what its records say."""
