"""A mail server for development and tests that keeps everything and delivers nothing, with an inbox to look at."""
