"""The local platform: real servers, sandboxes and the four services on one machine."""
