"""Sampling policies: who is drawn, how often, reproducibly, by train too; and what is refused."""

import itertools
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sumfold as sf
from sumfold import keys
from sumfold.learning.sampling import Draw, cohort, described

sampling = sf.sampling


def client(number):
    x = np.random.default_rng(number).normal(size=(5 + number, 3)).astype(np.float32)
    return x, x @ np.array([1.0, 2.0, 3.0], np.float32)


FEDERATION = sf.Federation.from_clients({name: client(i) for i, name in enumerate("abcdef")})
NUMBERED = sf.Federation.from_arrays(np.zeros(21, np.float32), offsets=np.cumsum([0, 1, 2, 3, 4, 5, 6]))


@pytest.fixture(scope="module")
def process():
    model = sf.models.from_functions(
        lambda key: jnp.zeros(3), lambda w, x: x @ w, lambda outputs, y: (outputs - y) ** 2
    )
    return sf.learning.fed_avg(model, optax.sgd(0.02), optax.adam(0.1), batching=sf.Batching(size=4))


def run(process, **options):
    return sf.train(process, FEDERATION, **{"rounds": 4, "progress": False, **options})


def same(a, b):
    leaves = zip(jax.tree.leaves(a.state), jax.tree.leaves(b.state), strict=True)
    return all(np.array_equal(x, y) for x, y in leaves) and (a.metrics, a.evaluations) == (b.metrics, b.evaluations)


def drawn(policy, rounds, federation=NUMBERED, seed=0):
    """The cohorts of many rounds, as lists."""
    return [list(cohort(policy, federation, keys.root(seed), number)) for number in range(rounds)]


def shares(policy, rounds=4000):
    """How often each client of NUMBERED takes part."""
    return np.bincount(list(itertools.chain(*drawn(policy, rounds))), minlength=6) / rounds


def recorded(policy, cohorts):
    """The policy, writing down what it draws."""

    def draw(given):
        cohorts.append(list(policy(given)))
        return cohorts[-1]

    return draw


# -- who is drawn


def test_uniform_is_what_clients_per_round_draws(process):
    expected = run(process, clients_per_round=3, seed=7)
    assert same(run(process, cohorts=sampling.uniform(3), seed=7), expected)
    for number, ids in enumerate(drawn(sampling.uniform(3), 5, seed=7)):
        generator = keys.generator(keys.root(7), purpose="cohort", round=number)
        assert ids == sorted(generator.choice(6, 3, replace=False, shuffle=False).tolist())


def exact_inclusion(weights, k):
    """The probability of each client to be among k drawn one by one, in proportion to the weights that are left."""
    found = np.zeros(len(weights))
    for order in itertools.permutations(range(len(weights)), k):
        chance, left = 1.0, sum(weights)
        for one in order:
            chance, left = chance * weights[one] / left if left else 0.0, left - weights[one]
        found[list(order)] += chance
    return found


@pytest.mark.parametrize("k", [1, 3])
def test_weighted_draws_one_by_one_in_proportion(k):
    weights = [1.0, 0.0, 5.0, 2.0, 0.5, 1.5]
    by_array = shares(sampling.weighted(k, weights))
    np.testing.assert_allclose(by_array, exact_inclusion(weights, k), atol=0.025)
    assert by_array[1] == 0
    mapping = {client: weights[client] for client in reversed(range(6))}
    assert drawn(sampling.weighted(k, mapping), 20) == drawn(sampling.weighted(k, np.array(weights)), 20)
    np.testing.assert_allclose(shares(sampling.weighted(k)), exact_inclusion([1, 2, 3, 4, 5, 6], k), atol=0.025)


@given(scale=st.floats(1e-300, 1e300), k=st.integers(1, 6), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_only_the_ratio_of_weights_counts(scale, k, seed):
    weights = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    federation, words = NUMBERED, keys.root(seed)
    whole = cohort(sampling.weighted(k, weights), federation, words, 0)
    assert len(set(whole.tolist())) == k
    np.testing.assert_array_equal(cohort(sampling.weighted(k, weights * scale), federation, words, 0), whole)


def test_poisson_draws_each_client_by_itself():
    cohorts = drawn(sampling.poisson(0.3), 4000)
    there = np.array([[client in ids for client in range(6)] for ids in cohorts], float)
    np.testing.assert_allclose(there.mean(0), 0.3, atol=0.025)
    np.testing.assert_allclose(np.corrcoef(there.T), np.eye(6), atol=0.06)
    sizes = np.bincount(there.sum(1).astype(int), minlength=7) / 4000
    assert sizes[0] == pytest.approx(0.7**6, abs=0.02)
    assert drawn(sampling.poisson(1), 1) == [[0, 1, 2, 3, 4, 5]]


def test_available_by_a_mapping_or_a_function():
    there = np.array([[1, 0, 1], [1, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0], [0, 1, 0]], bool)
    expected = [[0, 1, 3], [1, 3, 5], [0, 2, 3]]
    by_mapping = {client: there[client].tolist() for client in (5, 3, 2, 1, 0)}  # 4 is never there
    assert drawn(sampling.available(by_mapping), 3) == expected
    assert drawn(sampling.available(lambda number: there[:, number]), 3) == expected
    assert drawn(sampling.available(lambda number: set(expected[number])), 3) == expected
    assert drawn(sampling.available({0: [True] * 3 + [False] * 9, 2: [False, True, False]}), 3) == [[0], [0, 2], [0]]
    two = drawn(sampling.available(by_mapping, k=2), 3)
    assert two == drawn(sampling.available(lambda number: expected[number], k=2), 3)
    assert [len(ids) for ids in two] == [2, 2, 2]
    assert all(set(ids) < set(whole) for ids, whole in zip(two, expected, strict=True))
    assert drawn(sampling.available(by_mapping, k=5), 3) == expected
    halves = shares(sampling.available(lambda number: [0, 2, 3, 5], k=2))
    np.testing.assert_allclose(halves, [0.5, 0, 0.5, 0.5, 0, 0.5], atol=0.03)
    assert drawn(sampling.available({}), 2) == [[], []]


def test_fixed_is_the_same_in_every_round():
    assert drawn(sampling.fixed(["f", "b"]), 2, FEDERATION) == [["b", "f"], ["b", "f"]]
    assert drawn(sampling.fixed(range(2, 4)), 2) == [[2, 3], [2, 3]]
    assert drawn(sampling.fixed(np.array([4, 1])), 1) == [[1, 4]]


def test_a_draw_depends_on_seed_and_round_alone():
    policy = sampling.poisson(0.5)
    assert drawn(policy, 9, seed=3) == drawn(sampling.poisson(0.5), 9, seed=3)
    assert drawn(policy, 9, seed=3) != drawn(policy, 9, seed=4)
    assert len({tuple(ids) for ids in drawn(policy, 9, seed=3)}) > 1


def test_a_million_clients_are_drawn_without_looking_at_each():
    class Ids(Sequence):
        """May be asked by number, but never walked."""

        def __len__(self):
            return 10**6

        def __getitem__(self, position):
            return f"client {position}"

        def __iter__(self):
            raise AssertionError("walked")

    sizes = np.arange(10**6) % 7
    for policy in (
        sampling.uniform(100),
        sampling.weighted(100),
        sampling.weighted(100, sizes + 1.0),
        sampling.poisson(1e-4),
        sampling.available(lambda number: sizes == number, k=100),
    ):
        for ids in (Ids(), range(10**6)):
            found = policy(Draw(ids, sizes, 1, np.random.default_rng(0)))
            assert 50 < len(found) < 150


# -- in the loop


@pytest.mark.parametrize("runtime", [sf.Simulation(), sf.Loopback()], ids=["simulation", "loopback"])
def test_an_empty_cohort_changes_nothing(process, runtime):
    rate = 0.05
    cohorts = drawn(sampling.poisson(rate), 8, FEDERATION)
    assert {0, 1} <= {len(ids) for ids in cohorts}
    states = []
    history = sf.train(
        process.on(runtime),
        FEDERATION,
        rounds=8,
        cohorts=sampling.poisson(rate),
        callbacks=[lambda event: states.append(event.state)],
        progress=False,
    )
    before = process.initialize(0)
    for ids, metrics, after in zip(cohorts, history.metrics, states, strict=True):
        assert metrics["client_work"]["train"]["num_clients"] == len(ids)
        assert metrics["finalizer"]["update_non_finite"] == (not ids)
        pairs = zip(
            jax.tree.leaves(before.algorithm.optimizer), jax.tree.leaves(after.algorithm.optimizer), strict=True
        )
        assert all(np.array_equal(a, b) for a, b in pairs) == (not ids)
        weights = [process.get_model_weights(state) for state in (before, after)]
        assert np.array_equal(*weights) == (not ids)
        before = after


POLICIES = {
    "uniform": lambda: sampling.uniform(2),
    "weighted": lambda: sampling.weighted(2, dict(zip("abcdef", range(6), strict=True))),
    "weighted by examples": lambda: sampling.weighted(2),
    "poisson": lambda: sampling.poisson(0.4),
    "available": lambda: sampling.available({name: [True, i % 2 == 0] * 9 for i, name in enumerate("abcdef")}, k=2),
    "fixed": lambda: sampling.fixed(["b", "e"]),
    "another": lambda: lambda draw: [draw.ids[int(draw.generator.integers(len(draw.ids)))]],
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_run_that_goes_on_draws_the_same_and_another_policy_is_refused(process, name, tmp_path):
    whole, parts = [], []
    expected = run(process, cohorts=recorded(POLICIES[name](), whole), rounds=5)
    run(process, cohorts=POLICIES[name](), rounds=2, checkpoint=tmp_path)
    assert same(run(process, cohorts=POLICIES[name](), rounds=5, checkpoint=tmp_path), expected)
    run(process, cohorts=recorded(POLICIES[name](), parts), rounds=2)
    assert parts == whole[:2]
    other = sampling.poisson(0.41) if name != "another" else lambda_of_another_name
    with pytest.raises(sf.CheckpointError, match=r"clients_per_round is .* there and drawn by .* here") as caught:
        run(process, cohorts=other, checkpoint=tmp_path)
    assert caught.value.code == "SF-CKPT-015"


def lambda_of_another_name(draw):
    return draw.ids


def test_the_short_form_and_uniform_share_a_checkpoint(process, tmp_path):
    run(process, clients_per_round=3, rounds=2, checkpoint=tmp_path)
    assert same(run(process, cohorts=sampling.uniform(3), checkpoint=tmp_path), run(process, clients_per_round=3))
    with pytest.raises(sf.CheckpointError, match="clients_per_round is 3 there and 2 here"):
        run(process, cohorts=sampling.uniform(2), checkpoint=tmp_path)


def test_a_policy_is_known_by_its_parameters():
    weights = np.arange(1.0, 101.0)
    assert described(sampling.weighted(2, weights)) == described(sampling.weighted(2, weights.tolist()))
    assert described(sampling.weighted(2, weights)) != described(sampling.weighted(2, weights + 1))
    a, b = {"a": 1.0, "b": 2.0}, {"b": 2.0, "a": 1.0}
    assert described(sampling.weighted(1, a)) == described(sampling.weighted(1, b))
    assert described(sampling.weighted(1, a)) != described(sampling.weighted(1, {"a": 2.0, "b": 1.0}))
    assert described(sampling.weighted(2)) == "drawn by weighted(2, weights='examples')"
    by_function = described(sampling.available(lambda_of_another_name, 3))
    assert re.fullmatch(r"drawn by available\(lambda_of_another_name [0-9a-f]{16}, k=3\)", by_function)
    assert by_function == described(sampling.available(lambda_of_another_name, 3))
    assert described(sampling.available({"a": [True]})) != described(sampling.available({"a": [False]}))
    assert described(sampling.fixed([1, 2])) == "drawn by fixed([1, 2])"

    class Chooser:
        def __call__(self, draw):
            return draw.ids

    assert " at 0x" not in described(Chooser()) + described(partial(lambda_of_another_name, 3))


def take(number):
    """Policies of one name: a function, a part of one, a method and a callable object, each with a number in it."""

    class Take:
        def __init__(self, number):
            self.number = number

        def __call__(self, draw):
            return draw.ids[: self.number]

        def first(self, draw):
            return draw.ids[: self.number]

    def both(draw, number):
        return draw.ids[:number]

    return {
        "closure": lambda draw: draw.ids[:number],
        "partial": partial(both, number=number),
        "object": Take(number),
        "method": Take(number).first,
        "within available": sampling.available(lambda round: list("abcdef")[:number]),
        "object within available": sampling.available(Take(number)),
    }


@pytest.mark.parametrize("kind", take(1))
def test_a_policy_of_ones_own_is_known_by_what_it_closes_over(kind):
    assert described(take(2)[kind]) == described(take(2)[kind])
    assert described(take(2)[kind]) != described(take(3)[kind])


def test_a_policy_that_was_changed_is_noticed(process, tmp_path):
    for folder, one, same_again, other in (
        ("a", lambda draw: draw.ids[:2], lambda draw: draw.ids[:2], lambda draw: draw.ids[:3]),
        (
            "b",
            sampling.available(lambda round: ["a", "b"]),
            sampling.available(lambda round: ["a", "b"]),
            sampling.available(lambda round: ["a", "c"]),
        ),
    ):
        run(process, cohorts=one, rounds=2, checkpoint=tmp_path / folder)
        run(process, cohorts=same_again, rounds=3, checkpoint=tmp_path / folder)
        with pytest.raises(
            sf.CheckpointError, match=r"drawn by .*<lambda> \w+.* there and drawn by .*<lambda>"
        ) as caught:
            run(process, cohorts=other, checkpoint=tmp_path / folder)
        assert caught.value.code == "SF-CKPT-015"


def test_bools_are_a_mask():
    there = [True, False, False, True, True, False]
    for mask in (there, tuple(there), np.array(there), list(np.array(there))):
        assert drawn(lambda draw, mask=mask: mask, 2) == [[0, 3, 4]] * 2
        assert drawn(sampling.available(lambda round, mask=mask: mask), 1) == [[0, 3, 4]]
    assert drawn(lambda draw: draw.sizes > 4, 1) == [[4, 5]]
    assert drawn(lambda draw: [], 1) == [[]]


def test_traces_of_zeros_and_ones():
    for trace in ([1, 0], np.array([1, 0], np.uint8), np.array([True, False]), [True, 0]):
        assert drawn(sampling.available({3: trace}), 2) == [[3], []]


# -- what is refused


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda: sampling.uniform(0), "SF-TRAIN-020", r"uniform\(0\); needed: a whole number of clients, at least 1"),
        (lambda: sampling.uniform(2.5), "SF-TRAIN-020", r"uniform\(2.5\)"),
        (lambda: sampling.weighted(True), "SF-TRAIN-020", r"weighted\(True\)"),
        (lambda: sampling.available({}, k=0), "SF-TRAIN-020", r"available\(0\).*trace, k=10"),
        (lambda: sampling.poisson(0), "SF-TRAIN-022", r"poisson\(0\); needed: a probability above 0 and at most 1"),
        (lambda: sampling.poisson(1.01), "SF-TRAIN-022", "1.01"),
        (lambda: sampling.poisson(float("nan")), "SF-TRAIN-022", "nan"),
        (lambda: sampling.fixed([]), "SF-TRAIN-023", r"fixed\(\[\]\); needed: at least one client's id"),
        (lambda: sampling.fixed("abc"), "SF-TRAIN-023", "abc"),
        (lambda: sampling.fixed(3), "SF-TRAIN-023", "3"),
        (lambda: sampling.available(np.ones((6, 3), bool)), "SF-TRAIN-024", "a ndarray.*a mapping id"),
        (lambda: sampling.available({"a": iter([True])}), "SF-TRAIN-024", "a list_iterator as the trace of client 'a'"),
        (lambda: sampling.weighted(1, [1.0, -2.0]), "SF-TRAIN-026", "weights with -2 at place 1.*not negative"),
        (lambda: sampling.weighted(1, {"a": float("nan")}), "SF-TRAIN-026", "weights with nan at place 0"),
        (lambda: sampling.weighted(1, [0.0, 0.0]), "SF-TRAIN-026", "2 weights, all 0"),
        (lambda: sampling.weighted(1, []), "SF-TRAIN-026", "no weights"),
        (lambda: sampling.weighted(1, "rows"), "SF-TRAIN-026", "weights='rows'"),
        (lambda: sampling.weighted(1, [["a"]]), "SF-TRAIN-026", "weights as a list"),
        (lambda: sampling.weighted(1, np.ones((2, 2))), "SF-TRAIN-026", r"shape \[2, 2\]"),
        (lambda: sampling.weighted(1, {True: 1.0}), "SF-TRAIN-026", "a weight of client True, which is no id"),
        (lambda: sampling.fixed([True]), "SF-TRAIN-023", "fixed with True as an id; needed: at least one client's id"),
        (lambda: sampling.fixed(np.array([True, False])), "SF-TRAIN-023", "fixed with True as an id"),
        (lambda: sampling.available({True: [1]}), "SF-TRAIN-024", "a trace of client True, which is no id"),
        (
            lambda: sampling.available({"a": [1, 2]}),
            "SF-TRAIN-024",
            r"2 \(int64\) in round 1 of the trace of client 'a'; needed: a list or array of bool, or of the integers",
        ),
        (lambda: sampling.available({"a": [0.5]}), "SF-TRAIN-024", r"0.5 \(float64\) in round 0"),
        (lambda: sampling.available({"a": ["no"]}), "SF-TRAIN-024", "no .* in round 0 of the trace of client 'a'"),
        (lambda: sampling.available({"a": [[True]]}), "SF-TRAIN-024", r"trace of client 'a' of shape \[1, 1\]"),
        (lambda: sampling.available({"a": [[1], [1, 0]]}), "SF-TRAIN-024", "client 'a', which is no array"),
        (lambda: sampling.available({"a": "10"}), "SF-TRAIN-024", "a str as the trace of client 'a'"),
        (lambda: sampling.available({"a": {1, 0}}), "SF-TRAIN-024", "the trace of client 'a' as a set"),
    ],
)
def test_policies_refuse_what_they_cannot_use(make, code, words):
    with pytest.raises(sf.DataError, match=words) as caught:
        make()
    assert caught.value.code == code


REFUSED_WHEN_DRAWING = {
    "more than there are": (lambda: sampling.uniform(7), "SF-TRAIN-021", r"uniform\(7\) of a federation of 6 clients"),
    "more weighted": (lambda: sampling.weighted(7), "SF-TRAIN-021", "of a federation of 6"),
    "more available": (lambda: sampling.available({}, k=7), "SF-TRAIN-021", "k=7.* of a federation of 6"),
    "too few weigh": (
        lambda: sampling.weighted(2, [0, 0, 3.0, 0, 0, 0]),
        "SF-TRAIN-021",
        "1 of 6 clients with a weight above 0",
    ),
    "other weights": (lambda: sampling.weighted(2, [1.0, 2.0]), "SF-TRAIN-026", "2 weights for 6 clients"),
    "no weight": (lambda: sampling.weighted(1, {"a": 1.0}), "SF-TRAIN-026", "weights without client 'b'"),
    "a stranger's weight": (
        lambda: sampling.weighted(1, dict.fromkeys("abcdefz", 1.0)),
        "SF-TRAIN-026",
        "a weight of client 'z', whom the federation does not have",
    ),
    "another policy's mask": (
        lambda: lambda draw: [True, False],
        "SF-TRAIN-027",
        r"the policy <lambda> returned bool\[2\] in round 0; needed: bool\[6\]",
    ),
    "a bool": (lambda: lambda draw: ["a", True], "SF-TRAIN-025", "returned, in round 0, no client True"),
    "short trace": (
        lambda: sampling.available({"c": [True]}),
        "SF-TRAIN-024",
        "a trace of 1 rounds for client 'c', in round 1",
    ),
    "a stranger's trace": (lambda: sampling.available({"z": [True] * 4}), "SF-TRAIN-024", "a trace of client 'z'"),
    "other mask": (
        lambda: sampling.available(lambda number: np.ones(3, bool)),
        "SF-TRAIN-024",
        r"bool\[3\] from its trace in round 0; needed: bool\[6\]",
    ),
    "no ids": (lambda: sampling.available(lambda number: None), "SF-TRAIN-025", "got a NoneType from its trace"),
    "unknown": (lambda: sampling.fixed(["a", "z"]), "SF-TRAIN-025", r"fixed\(\['a', 'z'\]\) returned, in round 0.*'z'"),
    "twice": (lambda: lambda draw: ["a", "a"], "SF-TRAIN-025", "the policy <lambda> returned.* more than once"),
    "a string": (lambda: lambda draw: "abc", "SF-TRAIN-025", "returned a str in round 0; needed: a list"),
    "nothing": (lambda: lambda draw: None, "SF-TRAIN-025", "returned a NoneType in round 0"),
    "a number": (lambda: lambda draw: 3, "SF-TRAIN-025", "returned a int"),
    "no parentheses": (lambda: sampling.uniform, "SF-TRAIN-020", r"uniform\(a Draw\).*write .*uniform\(10\)"),
}


@pytest.mark.parametrize("name", REFUSED_WHEN_DRAWING)
def test_what_a_policy_draws_is_checked(process, name):
    make, code, words = REFUSED_WHEN_DRAWING[name]
    with pytest.raises(sf.DataError, match=words) as caught:
        run(process, cohorts=make(), rounds=2)
    assert caught.value.code == code


def test_a_policy_and_clients_per_round_are_one_too_many(process, tmp_path: Path):
    with pytest.raises(sf.DataError, match="one of the two") as caught:
        run(process, cohorts=sampling.uniform(2), clients_per_round=2, checkpoint=tmp_path)
    assert caught.value.code == "SF-TRAIN-003"
    assert list(tmp_path.iterdir()) == []
