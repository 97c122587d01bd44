"""The experiment: what is trained, what is compared, and by which rule it is decided."""
