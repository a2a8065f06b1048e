"""Faster copies of a detector: folded, exported, proven equal, kept where they can be taken back. Nothing here trains."""
