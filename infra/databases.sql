-- PostgreSQL runs this once, when its volume is new: one database for each that keeps something in it.
CREATE DATABASE airflow;
CREATE DATABASE mlflow;
CREATE DATABASE mlflow_users;
