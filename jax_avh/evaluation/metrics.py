"""Detection metrics of clip scores: exact, and undefined where a class is absent."""

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import average_precision_score, roc_auc_score

from extract.schema import FAKE, REAL


def detection_metrics(label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"]) -> dict[str, float | int | None]:
    """How well scores tell fake clips from real ones.

    Args:
      label: 0 real, 1 fake; clips of other labels are left out.
      score: higher = more fake.

    Returns:
      `auc` (area under the ROC curve, ties count half) and `ap` (average precision, fake = positive), None unless both
      classes are there; `real` and `fake`, the numbers of clips.
    """
    known = np.isin(label, (REAL, FAKE))
    label, score = label[known], score[known]
    real, fake = int((label == REAL).sum()), int((label == FAKE).sum())
    defined = real > 0 and fake > 0
    return {
        "auc": float(roc_auc_score(label, score)) if defined else None,
        "ap": float(average_precision_score(label, score)) if defined else None,
        "real": real,
        "fake": fake,
    }
