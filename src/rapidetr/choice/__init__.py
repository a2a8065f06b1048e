"""Which configuration keeps a promise: `rank` judges what was measured, `search` decides what to measure next."""
