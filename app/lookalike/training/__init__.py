"""Fits the heads of `lookalike.models.heads` to labelled vectors."""
