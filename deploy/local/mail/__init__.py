"""A mail server for development and tests: keeps everything, delivers nothing, has an inbox to look at."""
