"""The command line, and the local runtime that runs a VecCluster file on one machine."""
