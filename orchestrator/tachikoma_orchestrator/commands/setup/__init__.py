"""`tachikoma setup`: an orchestrator's host, from a plan of steps."""
