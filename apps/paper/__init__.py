"""Makes the paper's comparison in one command: trainings, scores, and every table next to the published numbers."""
