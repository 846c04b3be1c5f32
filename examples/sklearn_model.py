"""A scikit-learn classifier, federated: handwritten digits at 20 clients.

python examples/sklearn_model.py            (needs the extra `sklearn`)
"""

from sklearn.linear_model import SGDClassifier
from sklearn.naive_bayes import GaussianNB

import sumfold as sf


def flat(federation):
    """The images as rows of 64 numbers, which is what scikit-learn takes."""
    return sf.data.Federation.from_clients(
        {
            client: (x.reshape(len(x), 64), y)
            for client, (x, y) in ((client, federation[client]) for client in federation)
        }
    )


def main(rounds=20, seed=0):
    train, test = map(flat, sf.data.digits(clients=20, alpha=0.3, seed=seed))
    x, y = train.pooled()
    example, classes = x[:1], range(10)  # how many features there are, and which labels

    # Coefficients are averaged: many rounds, any server optimizer.
    model = sf.models.from_sklearn(SGDClassifier(loss="log_loss", random_state=0), example, classes=classes)
    process = sf.learning.fed_avg(model)
    history = sf.train(process, train, rounds=rounds, seed=seed, evaluate=test, evaluate_every=10)
    federated = history.evaluations[-1]["accuracy"]
    pooled = SGDClassifier(loss="log_loss", random_state=0).fit(x, y).score(*test.pooled())
    print(f"SGDClassifier: federated {federated:.3f}, all rows in one place {pooled:.3f}")

    # Counts and moments add up: naive Bayes is exact after one round.
    model = sf.models.from_sklearn(GaussianNB(var_smoothing=0.01), example, classes=classes)
    once = sf.train(sf.learning.fed_avg(model), train, rounds=1, seed=seed, evaluate=test)
    counted = once.evaluations[-1]["accuracy"]
    together = GaussianNB(var_smoothing=0.01).fit(x, y).score(*test.pooled())
    print(f"GaussianNB: federated {counted:.3f}, all rows in one place {together:.3f}")
    return federated, pooled, counted, together


if __name__ == "__main__":
    main()
