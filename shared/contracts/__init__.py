"""What the services say to each other: the envelope and the order events, with wire names and versions."""
