"""Pictures that are stored more than once: copies, re-encoded versions, near duplicates."""
