"""The asyncio engine that runs executions, its lease in Redis, and the agent's identity."""
