"""The agent's side of interactive sessions: sealed input from orchestrators to a running command."""
