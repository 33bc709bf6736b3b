"""How hard the packaged intents are: a TF-IDF logistic regression on them, and the counts of their data card."""

from collections import Counter

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from ftmatrix.data import Dataset, Pocket
from ftmatrix.data.dataset import folded

NEAR = 0.7
"""Share of words in common from which two messages count as near."""


def baseline_accuracy(dataset: Dataset, split: str) -> float:
    """Share of a split's messages that the baseline gets right."""
    baseline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=2000)
    )
    baseline.fit([message.text for message in dataset.train], [message.label for message in dataset.train])
    messages = getattr(dataset, split)
    return float(baseline.score([message.text for message in messages], [message.label for message in messages]))


def near_share(dataset: Dataset) -> float:
    """Share of the test messages that have nearly the words of a training message of their intent (Jaccard)."""
    known: dict[str, list[set[str]]] = {}
    for message in dataset.train:
        known.setdefault(message.label, []).append(set(folded(message.text).split()))
    near = 0
    for message in dataset.test:
        words = set(folded(message.text).split())
        near += any(len(words & other) >= NEAR * len(words | other) for other in known[message.label])
    return near / len(dataset.test)


def main() -> None:
    """Print the accuracy of the baseline and the size of each split."""
    dataset = Pocket(name="pocket").load()
    for split in ("validation", "test"):
        accuracy = baseline_accuracy(dataset, split)
        print(f"TF-IDF logistic regression, {split}: {accuracy:.1%} of {len(getattr(dataset, split))}")
    sizes = sorted(Counter(message.label for message in dataset.train).values())
    print(f"train: {len(dataset.train)} messages, {len(dataset.labels)} intents, {sizes[0]} to {sizes[-1]} an intent")
    print(f"test messages that share {NEAR:.0%} of their words with a training message: {near_share(dataset):.1%}")


if __name__ == "__main__":
    main()
