"""What the command `lccp` does, a module a verb; cli.py reads the command line."""
