"""The payment provider: the port that checkout speaks to, and the adapters behind it."""
