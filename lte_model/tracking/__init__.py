"""What is on record: MLflow's runs, the registry's aliases, the versions of Delta tables and of the code."""
