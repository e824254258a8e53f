"""The agent's component: a Celery worker whose pool runs commands and reports their output and their endings."""

from importlib.metadata import version

__all__ = ["VERSION"]

VERSION = version("tachikoma-exec")
