"""`python -m lookalike` is the command `lookalike`."""

from lookalike.cli.main import run

if __name__ == "__main__":
    run()
