"""Data folders as this version and earlier ones wrote them; see `write.py`."""
