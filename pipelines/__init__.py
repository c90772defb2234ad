"""The commands: each stage from end to end, where it runs, and the command line."""
