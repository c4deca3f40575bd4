"""Starting processes: a Ray session, ranks on this host, jobs on a cluster."""
