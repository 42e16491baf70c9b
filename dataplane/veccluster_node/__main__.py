"""`python -m veccluster_node` is `veccluster-node`."""

from veccluster_node.main import main

main()
