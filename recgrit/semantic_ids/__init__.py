"""Semantic IDs: the table of items and codes, unique IDs, and the trie of existing IDs."""
