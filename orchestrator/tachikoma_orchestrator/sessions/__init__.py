"""Interactive sessions: attachments of callers, epochs with agents, and input on its way to them."""
