"""MDS: a supervised detector of how far a second's sound and picture lie apart."""
