"""What concerns the cluster as a whole: leading it, seeing who is there, comparing copies, recovering a lost quorum."""
