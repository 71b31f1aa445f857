"""Fits the heads of `lookalike.models.head` to labelled vectors."""
