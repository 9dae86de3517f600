"""How events travel: the log in Postgres, the relay, the streams in Redis, the consumer and its ledger."""
