"""The store in a data folder: SQLite is the truth, FAISS is derived from it."""
