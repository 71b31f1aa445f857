"""Lookalike: self-hosted image similarity search."""

__version__ = "0.1.0"
