"""The paper's comparison in one command: every training, every score, every table, ours beside the published numbers."""
