"""Picture bytes to unit vectors."""
