"""The agent's part: a Celery worker whose pool runs commands and reports their output and their end."""

from importlib.metadata import version

__all__ = ["VERSION"]

VERSION = version("tachikoma-exec")
