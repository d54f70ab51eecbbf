"""Landmarks, face tracking and mouth crops."""

from extract.face.landmarks import detect_landmarks
from extract.face.mouth import crop_mouths

__all__ = ["crop_mouths", "detect_landmarks"]
