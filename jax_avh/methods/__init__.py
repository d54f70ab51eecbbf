"""Detectors, a module each, with the same names inside: NAME, CLIP_POOLING, frame_losses, frame_scores."""
