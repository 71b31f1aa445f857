"""The durable, searchable set of pictures."""
