"""Numbers to figures and panels."""
