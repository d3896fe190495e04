"""The Delta tables as they are read without a JVM: schemas, versions, the catalogue, popularity."""
