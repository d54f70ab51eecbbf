"""An extraction: on one machine, on a Ray cluster, or as an array of jobs."""
