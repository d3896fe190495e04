"""Registered versions of the ranker: gate, promotion, rollback, change of basis."""
