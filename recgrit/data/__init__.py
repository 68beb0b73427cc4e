"""From raw files to dense interactions, an item table and per-user sequences. No torch here."""
