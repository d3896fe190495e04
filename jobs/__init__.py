"""Spark jobs. Each file is a job and a task of a DAG: it reads tables, calls one pure function, writes one table."""
