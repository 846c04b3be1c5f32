"""Federated averaging, whole: four hospitals train one model, and no patient's record leaves a hospital.

python examples/fed_avg.py
"""

import jax.numpy as jnp
import optax

import sumfold as sf

# A model is three functions. This one is logistic regression on ten columns: age, blood pressure, ….
# Loss and metrics give one number per example; Sumfold weighs and sums them.


def init(key):
    return {"w": jnp.zeros(10), "b": jnp.zeros(())}


def predict(params, x):
    return x @ params["w"] + params["b"]


def loss(outputs, y):
    return optax.sigmoid_binary_cross_entropy(outputs, y)


def main(rounds=30):
    model = sf.models.from_functions(
        init, predict, loss, metrics={"auc": sf.metrics.auc, "accuracy": sf.metrics.accuracy}
    )

    # A federation holds each client's own rows. Every hospital keeps 30 % of its patients for testing.
    train, test = sf.data.heart_disease(seed=0)
    print("clients:", dict(train.sizes))

    # The algorithm: each hospital trains on its own rows, the server moves the model by the mean of their changes.
    process = sf.learning.fed_avg(
        model,
        client_optimizer=optax.sgd(0.05),
        server_optimizer=optax.sgd(1.0),
        batching=sf.Batching(size=32, epochs=1),
    )

    # A round takes a state and gives a new one. Nothing is changed in place: the old state stays usable.
    state = process.initialize(seed=0)
    for number in range(3):
        state, metrics = process.next(state, train)
        measured = metrics["client_work"]["train"]
        print(f"round {number}: loss {measured['loss']:.3f} over {measured['num_examples']} patients")

    # The loop does the same, with sampling, evaluation, checkpoints and a progress bar. It goes on from round 3.
    history = sf.train(process, train, rounds=rounds, state=state, evaluate=test, evaluate_every=10, progress=False)
    for entry in history.evaluations:
        print(f"after round {entry['round']}: AUC {entry['auc']:.3f} on all test patients")

    # The model on each hospital's own test patients.
    weights = process.get_model_weights(history.state)
    for hospital in test:
        x, y = test[hospital]
        result = model.evaluate(weights, x, y)
        print(f"{hospital:15} AUC {result['auc']:.3f}  accuracy {result['accuracy']:.3f}  of {len(y)} patients")

    # What a hospital receives, computes and sends: every array, by name and size.
    print()
    print(process.explain())
    return history


if __name__ == "__main__":
    main()
