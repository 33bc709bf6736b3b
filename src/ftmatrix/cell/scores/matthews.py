"""Matthews' correlation of gold and answered intents, in [-1, 1]: 0 for any constant or random answer.

Gorodkin 2004 (doi:10.1016/j.compbiolchem.2004.09.006) for several classes; an invalid answer is a class of its own.
"""

from collections.abc import Sequence

from sklearn.metrics import matthews_corrcoef

from ftmatrix.data import INVALID
from ftmatrix.records import Prediction


def score(predictions: Sequence[Prediction]) -> float:
    gold = [prediction.label for prediction in predictions]
    answered = [prediction.answer if prediction.valid else INVALID for prediction in predictions]
    return float(matthews_corrcoef(gold, answered))
