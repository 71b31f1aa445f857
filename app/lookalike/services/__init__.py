"""The use cases; they know no HTTP, torch, faiss or sqlite3."""
