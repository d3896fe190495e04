"""The local stack: Airflow, MLflow and the pages on one machine."""
