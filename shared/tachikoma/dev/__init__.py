"""The whole system on one machine: development CA, `tachikoma dev` and `tachikoma demo`.

It starts the same orchestrator and worker programs as production does, and imports neither.
"""
