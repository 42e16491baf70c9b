"""`veccluster-etcd-member`: what prepares a member of etcd in its pod."""
