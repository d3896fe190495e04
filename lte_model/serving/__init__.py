"""What serves LTEs and rankings: the live table, the online store, MLflow's pyfunc model."""
