"""How hard the packaged intents are: a TF-IDF logistic regression on them, and the counts of their data card."""

from collections import Counter

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from ftmatrix.data import Pocket


def main() -> None:
    """Print the accuracy of the baseline and the size of each split."""
    dataset = Pocket(name="pocket").load()
    baseline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=2000)
    )
    baseline.fit([message.text for message in dataset.train], [message.label for message in dataset.train])
    for split in ("validation", "test"):
        messages = getattr(dataset, split)
        accuracy = baseline.score([message.text for message in messages], [message.label for message in messages])
        print(f"TF-IDF logistic regression, {split}: {accuracy:.1%} of {len(messages)}")
    sizes = sorted(Counter(message.label for message in dataset.train).values())
    print(f"train: {len(dataset.train)} messages, {len(dataset.labels)} intents, {sizes[0]} to {sizes[-1]} an intent")


if __name__ == "__main__":
    main()
