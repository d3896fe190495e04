"""Spark jobs. One file is one job is one task of a DAG: tables in, one pure function, one table out."""
