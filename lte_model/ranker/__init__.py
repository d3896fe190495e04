"""The transformer, how an LTE enters it, and the batches and ranks around it."""
