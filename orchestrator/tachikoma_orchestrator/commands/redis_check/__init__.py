"""`tachikoma redis check`: it compares a live Redis with the requirements in `docs/redis.md`. It only reads."""
