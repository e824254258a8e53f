"""Setting up a host: steps as values, and their application. Planning and applying are separate."""
