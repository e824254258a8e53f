"""Celery events made from the ledger, and Flower itself."""
