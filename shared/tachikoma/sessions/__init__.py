"""The protocol of interactive sessions between orchestrator and agent: frames, and how they are sealed."""
