"""A profile's folder, its notebooks in batch, the plan, the report and the command line."""
