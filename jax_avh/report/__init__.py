"""Presents results to people: pages, charts and tables."""
