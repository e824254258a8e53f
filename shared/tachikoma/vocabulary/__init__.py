"""The values that all parts share: requests, results, states, limits, policies, agents, audit events, schedules."""
