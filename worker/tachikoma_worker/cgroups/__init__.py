"""Resource limits as cgroup files, for v1 and v2."""
