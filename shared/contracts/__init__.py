"""What the services say to each other: the envelope and the order events, each with its wire name and version."""
