"""Messages that agents publish: output frames and heartbeats."""
