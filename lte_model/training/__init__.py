"""From the training set to a saved ranker, and to a fitted encoder of items."""
