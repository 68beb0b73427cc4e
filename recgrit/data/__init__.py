"""Preparation of data: from raw files to interactions, an item table and per-user sequences.

No module of this package imports torch.
"""
