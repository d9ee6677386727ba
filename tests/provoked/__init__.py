"""What each failure that a user can cause prints: ``python -m tests.provoked`` writes docs/errors.md."""
