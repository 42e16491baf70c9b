"""`python -m veccluster_operator` is `veccluster-operator`."""

from veccluster_operator.main import main

main()
