"""The whole system on one machine: a development CA, and all processes under one folder, for `tachikoma dev` and tests.

It starts the same orchestrator and worker programs as production does, and imports neither.
"""
