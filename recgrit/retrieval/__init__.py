"""The trie retriever: a causal history encoder, and a code decoder that walks the trie of IDs."""
