"""What an LTE is: its dates, its kind, its representation, and the semantic basis."""
