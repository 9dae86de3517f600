"""What checkout does: place, charge, settle, recover."""
