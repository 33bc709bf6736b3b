"""Figures of one split from its predictions."""

from collections.abc import Mapping, Sequence
from functools import partial

from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from ftmatrix.cell.scores import score_names, score_of
from ftmatrix.cell.secondary import Secondary
from ftmatrix.data import INVALID
from ftmatrix.records import Evaluation, IntentScore, PairConfusion, Prediction


def named_scores(predictions: Sequence[Prediction], secondary: Secondary) -> dict[str, float]:
    """The figures of `ftmatrix.cell.scores`, by name. One that fails is unknown, and a note says why."""
    found = {name: secondary(f"metric {name}", partial(score_of, name, predictions)) for name in score_names()}
    return {name: value for name, value in found.items() if value is not None}


def score(
    split: str,
    predictions: Sequence[Prediction],
    *,
    nll: float,
    labels: Sequence[str],
    common: frozenset[str],
    pair: tuple[str, str] | None,
    scores: Mapping[str, float] | None = None,
) -> Evaluation:
    """All figures of one split from its predictions; see `Evaluation` for what each means."""
    gold = [prediction.label for prediction in predictions]
    answered = [prediction.answer if prediction.valid else INVALID for prediction in predictions]
    precision, recall, f1, support = precision_recall_fscore_support(
        gold, answered, labels=list(labels), zero_division=0
    )
    matrix = confusion_matrix(gold, answered, labels=[*labels, INVALID])[: len(labels)]
    on_common = [prediction.correct for prediction in predictions if prediction.label in common]
    count = len(predictions)
    return Evaluation(
        split=split,
        messages=count,
        accuracy=sum(prediction.correct for prediction in predictions) / count,
        accuracy_constrained=sum(prediction.constrained == prediction.label for prediction in predictions) / count,
        accuracy_common=sum(on_common) / len(on_common) if on_common else float("nan"),
        common_intents=len(common),
        common_messages=len(on_common),
        invalid_rate=sum(not prediction.valid for prediction in predictions) / count,
        unended_rate=sum(prediction.begins is not None for prediction in predictions) / count,
        macro_f1=float(f1.mean()),
        nll=nll,
        intents=tuple(
            IntentScore(label, float(p), float(r), float(f), int(s))
            for label, p, r, f, s in zip(labels, precision, recall, f1, support, strict=True)
        ),
        confusion=tuple(tuple(int(cell) for cell in row) for row in matrix),
        pair=_pair_confusion(predictions, pair) if pair else None,
        predictions=tuple(predictions),
        scores=dict(scores or {}),
    )


def _pair_confusion(predictions: Sequence[Prediction], pair: tuple[str, str]) -> PairConfusion:
    errors = [prediction for prediction in predictions if prediction.label in pair and not prediction.correct]
    crossed = sum(prediction.valid and prediction.answer in pair for prediction in errors)
    if not errors:
        return PairConfusion(pair, 0, 0, None, None, None)
    interval = binomtest(crossed, len(errors)).proportion_ci(0.95, method="wilson")
    return PairConfusion(pair, len(errors), crossed, crossed / len(errors), float(interval.low), float(interval.high))
