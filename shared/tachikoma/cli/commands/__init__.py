"""The commands of the client, one noun a module; each module adds its own to the application."""
