"""Whole runs over a feed: the demo, the ablation, the drill."""
