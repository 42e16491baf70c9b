"""Pure decisions: what is wanted and what is seen go in, actions come out."""
