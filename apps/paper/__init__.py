"""The paper's comparison in one command: trainings, scores, and every table beside the published numbers."""
