"""Fits the heads of `app.embedding.heads` to labelled vectors."""
