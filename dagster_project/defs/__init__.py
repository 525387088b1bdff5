"""What Dagster loads, a module for each kind of thing."""
