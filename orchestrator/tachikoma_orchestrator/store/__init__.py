"""Access to Redis: scripts, subscriptions, captured Celery messages."""
