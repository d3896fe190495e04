"""Reads the Delta tables without a JVM: schemas, versions, the catalogue, popularity."""
