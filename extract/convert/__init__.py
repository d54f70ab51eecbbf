"""Conversion between the file formats of other programs and ours."""
