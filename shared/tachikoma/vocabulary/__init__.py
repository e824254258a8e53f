"""The words both sides speak: requests, results, states, limits, policies, agents, audit events, schedules."""
