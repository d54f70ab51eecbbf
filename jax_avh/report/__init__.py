"""Presentation of results: pages, charts and tables."""
