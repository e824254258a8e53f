"""`tachikoma redis backup` and `restore`: a copy of the whole Redis, from which a server can start."""
