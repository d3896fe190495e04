-- PostgreSQL runs this once, when its volume is new: one database per service.
CREATE DATABASE airflow;
CREATE DATABASE mlflow;
CREATE DATABASE mlflow_users;
