"""What runs the project: on one machine, in a production, and over a whole feed."""
