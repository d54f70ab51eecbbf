"""Loads dlib's models at import, because a fork server can only import: its workers share them (100 MB, a second)."""

import contextlib

from avh_shards import UserError
from extract.face.landmarks import detector, predictor

detector()
with contextlib.suppress(UserError):  # the first clip that needs a missing model reports it
    predictor()
