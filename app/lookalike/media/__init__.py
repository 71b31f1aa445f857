"""Bytes to pictures: formats, archives, addresses, sources."""
