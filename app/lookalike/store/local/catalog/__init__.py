"""Rows, vectors, metadata and jobs in SQLite: the truth of the local store."""
