"""Checkout's tables and queries. Nothing in here commits."""
