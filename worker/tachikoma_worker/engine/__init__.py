"""The asyncio engine that runs executions, the agent's lease, and its certificate renewal."""
