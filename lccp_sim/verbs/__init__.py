"""The verbs of the command `lccp`, a module each; cli.py reads the command line."""
