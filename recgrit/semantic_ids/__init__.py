"""Semantic IDs: the ID table of all items, unique IDs, and the trie of existing IDs."""
