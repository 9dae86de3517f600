"""A server of the Stripe API subset that checkout speaks, for development and tests; see README.md here."""
