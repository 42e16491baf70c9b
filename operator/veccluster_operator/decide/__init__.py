"""What the operator decides: pure functions of a VecCluster and of what was observed. No I/O, no clock."""
