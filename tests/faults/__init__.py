"""Faults tried on the real command line, and counted: ``python -m tests.faults`` writes results.md."""
