"""The comparison of a training's models on the test days, and its report."""
