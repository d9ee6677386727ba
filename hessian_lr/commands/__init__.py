"""The command line: what its options mean, what each command composes, what it prints."""
