"""The command line shell."""
