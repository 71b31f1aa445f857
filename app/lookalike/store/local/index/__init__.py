"""How the nearest vectors are found: FAISS, over what the catalog holds."""
