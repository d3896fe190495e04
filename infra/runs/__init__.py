"""Runs over a whole feed: the demo, the ablation, the drill."""
