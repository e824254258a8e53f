"""The random run: many executions while faults happen that a seed decides.

`scene.py` has the registry of faults; each other module here but `callers.py` is a group of them. To add a fault, write
a function that takes the scene, give it a weight with `@fault(weight)`, and import its module below.
"""

from soak import clocks, lives, lost_keys, networks, processes, queues

__all__ = ["clocks", "lives", "lost_keys", "networks", "processes", "queues"]
