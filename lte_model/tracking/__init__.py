"""What is on record: MLflow's runs, the aliases of the registry, Delta versions, the code's version."""
