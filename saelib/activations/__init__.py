"""Contexts to rows: the language model, the store on disk, live rows, moments."""
