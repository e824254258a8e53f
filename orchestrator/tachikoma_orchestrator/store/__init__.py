"""Access to Redis: scripts, the subscription, captured Celery messages."""
