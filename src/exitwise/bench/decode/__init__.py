"""What decoding language models costs: ways to continue a prompt, one after another in one process, and the figures about our own loop."""
