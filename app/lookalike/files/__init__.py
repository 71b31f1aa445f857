"""Files that survive a crash: atomic writes, artifact folders, blobs."""
