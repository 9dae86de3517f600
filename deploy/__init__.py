"""How Orderstream is started and operated, on one machine and on many."""
