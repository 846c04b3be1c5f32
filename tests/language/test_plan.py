"""How programs are sorted into exchanges: how many, what is sent, what is summed, what a client keeps."""

import re

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.language.split import split

FLOAT, INT, VECTOR = np.float32, np.int32, sf.TensorType(np.float32, (3,))
READINGS = sf.SequenceType(FLOAT)
ROWS = sf.SequenceType(sf.StructType([VECTOR, FLOAT]))
CLIENTS, SERVER = sf.type_at_clients, sf.type_at_server
RATE = 0.05

DATA = [
    [(np.array([1, 2, 3], np.float32), np.float32(4.0)), (np.array([0, 1, -1], np.float32), np.float32(1.0))],
    [(np.array([2, 0, 1], np.float32), np.float32(-1.0))],
    [(np.array([k, 1, 0], np.float32), np.float32(k)) for k in range(4)],
]


def gradient(w, row):
    x, y = row
    return 2.0 * (x @ w - y) * x


def descend(w, rows):
    return sf.sequence_reduce(rows, w, lambda v, row: v - RATE * gradient(v, row))


def descended(w, rows):
    for row in rows:
        w = w - RATE * gradient(w, row)
    return w


def number_of_rows(rows):
    return sf.sequence_reduce(rows, 0, lambda n, _: n + 1)


@sf.federated_computation(SERVER(VECTOR), CLIENTS(ROWS))
def fed_avg(w, rows):
    trained = sf.federated_map(descend, (sf.federated_broadcast(w), rows))
    return sf.federated_mean(trained, number_of_rows(rows))


@sf.federated_computation(SERVER(VECTOR), CLIENTS(ROWS))
def mime(w, rows):
    def whole(w, rows):
        return sf.sequence_reduce(rows, jnp.zeros(3), lambda total, row: total + gradient(w, row))

    here, n = sf.federated_broadcast(w), number_of_rows(rows)
    own = sf.federated_map(lambda total, n: total / n.astype(jnp.float32), (sf.federated_map(whole, (here, rows)), n))
    full = sf.federated_broadcast(sf.federated_mean(own, n))

    def local(w, rows, own, full):
        return sf.sequence_reduce(rows, w, lambda v, row: v - RATE * (gradient(v, row) - own + full))

    return sf.federated_mean(sf.federated_map(local, (here, rows, own, full)), n)


@sf.federated_computation(SERVER(VECTOR), CLIENTS(ROWS))
def line_search(w, rows):
    """The gradient; the losses at four steps along it; the largest loss of a client at the best of them."""

    def total(w, rows):
        return sf.sequence_reduce(rows, jnp.zeros(3), lambda total, row: total + gradient(w, row))

    def loss(w, rows):
        return sf.sequence_reduce(rows, 0.0, lambda total, row: total + (row[0] @ w - row[1]) ** 2)

    here = sf.federated_broadcast(w)
    direction = sf.federated_mean(sf.federated_map(total, (here, rows)))
    tried = sf.federated_map(lambda w, d: tuple(w - rate * d for rate in (0.0, 0.01, 0.1, 1.0)), (w, direction))
    losses = [sf.federated_sum(sf.federated_map(loss, (sf.federated_broadcast(tried[i]), rows))) for i in range(4)]
    best = sf.federated_map(lambda tried, losses: jnp.stack(tried)[jnp.argmin(jnp.stack(losses))], (tried, losses))
    return best, sf.federated_max(sf.federated_map(loss, (sf.federated_broadcast(best), rows)))


def pieces(comp):
    return comp.program.plan.clients


def labels(comp):
    return [[e.params["label"] for e in piece.sums] for piece in pieces(comp)]


def shapes(variables):
    return [(v.aval.shape, str(v.aval.dtype)) for v in variables]


def sent(comp):
    """What the server sends in each exchange."""
    return [shapes(v for _, v in piece.received) for piece in pieces(comp)]


def kept(comp):
    return [shapes(piece.kept) for piece in pieces(comp)]


def round_of(comp):
    return split(comp.program, "round", False)


# -- programs that people write --------------------------------------------------------------------------


def test_fed_avg_is_one_broadcast_and_one_aggregation():
    assert sent(fed_avg) == [[((3,), "float32")]]
    assert labels(fed_avg) == [["federated_mean"]]
    assert shapes(pieces(fed_avg)[0].sums[0].invars) == [((3,), "float32"), ((), "float32")]  # the model, the weight
    assert kept(fed_avg) == [[]]
    assert pieces(fed_avg)[0].folds


def test_fed_avg_of_a_structure_with_an_optimizer_sends_the_model_alone():
    model = sf.StructType([("w", VECTOR), ("b", FLOAT)])

    @sf.federated_computation(SERVER(model), CLIENTS(ROWS))
    def averaging(model, rows):
        optimizer = optax.adam(0.1)

        def train(model, rows):
            def step(carry, row):
                updates, state = optimizer.update({"w": gradient(carry[0]["w"], row), "b": row[1]}, carry[1])
                return optax.apply_updates(carry[0], updates), state

            model = {"w": model["w"], "b": model["b"]}
            return sf.sequence_reduce(rows, (model, optimizer.init(model)), step)[0]

        return sf.federated_mean(sf.federated_map(train, (sf.federated_broadcast(model), rows)))

    assert sorted(sent(averaging)[0]) == [((), "float32"), ((3,), "float32")]
    assert sorted(shapes(pieces(averaging)[0].sums[0].invars)) == [((), "float32"), ((3,), "float32")]


def test_mime_is_two_exchanges():
    assert labels(mime) == [["federated_mean"], ["federated_mean"]]
    assert sent(mime) == [[((3,), "float32")], [((3,), "float32"), ((3,), "float32")]]
    first, last = kept(mime)
    assert ((3,), "float32") in first, "its own gradient stays with the client"
    assert first.count(((3,), "float32")) == 1, "what is sent in the second exchange is not kept from the first"
    assert last == []


def test_line_search_is_three_exchanges():
    assert labels(line_search) == [["federated_mean"], ["federated_sum"] * 4, ["federated_max"]]
    assert [len(s) for s in sent(line_search)] == [1, 4, 1]
    assert kept(line_search) == [[], [], []]


def test_what_people_write_agrees_on_runtimes(simulated):
    """Mime is below, also over the loopback; so is federated averaging, in test_fed_avg.py."""
    w = np.array([0.5, -1.0, 2.0], np.float32)
    trained = simulated(fed_avg, w, DATA)
    np.testing.assert_allclose(trained, np.average([descended(w, c) for c in DATA], 0, [2, 1, 4]), rtol=2e-5)
    best, largest = simulated(line_search, w, DATA)
    losses = [sum((x @ best - y) ** 2 for x, y in client) for client in DATA]
    assert largest == pytest.approx(max(losses), rel=2e-5)


def test_mime_is_what_its_paper_says(everywhere):
    w = np.array([0.5, -1.0, 2.0])
    rows = [[(np.float64(x), float(y)) for x, y in client] for client in DATA]
    counts = [len(client) for client in rows]
    own = [sum(gradient(w, row) for row in client) / len(client) for client in rows]
    full, after = np.average(own, axis=0, weights=counts), []
    for client, mine in zip(rows, own, strict=True):
        v = w
        for row in client:
            v = v - RATE * (gradient(v, row) - mine + full)
        after.append(v)
    np.testing.assert_allclose(
        everywhere(mime, w.astype(np.float32), DATA), np.average(after, axis=0, weights=counts), rtol=2e-5
    )


# -- exchanges ---------------------------------------------------------------------------------------------


def test_sums_that_do_not_wait_for_each_other_share_an_exchange():
    @sf.federated_computation(CLIENTS(FLOAT), CLIENTS(INT))
    def measures(x, n):
        return sf.federated_mean(x), sf.federated_sum(n), sf.federated_min(x), sf.federated_secure_sum(n, 9)

    assert labels(measures) == [["federated_mean", "federated_sum", "federated_min", "federated_secure_sum"]]
    assert sent(measures) == [[]]


def test_arithmetic_between_sums_needs_no_exchange():
    @sf.federated_computation(CLIENTS(FLOAT))
    def variance(x):
        return sf.federated_mean(x * x) - sf.federated_mean(x) ** 2

    assert len(pieces(variance)) == 1
    assert variance([1.0, 3.0]) == 1.0


def test_a_sum_waits_for_what_it_is_computed_from_and_others_do_not():
    @sf.federated_computation(CLIENTS(FLOAT))
    def centred(x):
        mean = sf.federated_mean(x)
        off = x - sf.federated_broadcast(mean)
        return sf.federated_mean(off * off), sf.federated_max(x), mean

    assert labels(centred) == [["federated_mean", "federated_max"], ["federated_mean"]]
    assert sent(centred) == [[], [((), "float32")]]


def test_without_a_sum_there_is_no_exchange():
    @sf.federated_computation(SERVER(FLOAT))
    def doubled(x):
        return x * 2.0

    assert pieces(doubled) == []
    assert round_of(doubled).phases == ()
    assert doubled.on(sf.Simulation())(1.5) == 3.0
    assert "nothing leaves" in doubled.explain()


def test_a_broadcast_that_is_returned_is_no_exchange():
    @sf.federated_computation(SERVER(FLOAT))
    def everywhere_else(x):
        return sf.federated_broadcast(x * 2.0)

    assert pieces(everywhere_else) == []
    assert everywhere_else(1.5) == 3.0


def test_a_client_value_that_is_returned_needs_an_exchange_of_its_own():
    @sf.federated_computation(CLIENTS(FLOAT))
    def shares(x):
        return x / sf.federated_broadcast(sf.federated_sum(x))

    assert labels(shares) == [["federated_sum"], []]
    assert shares([1.0, 3.0]) == [0.25, 0.75]
    with pytest.raises(sf.CompositionError, match="SF-COMP-056"):
        shares.on(sf.Simulation())([1.0, 3.0])


def test_a_sum_of_what_depends_on_no_argument_counts_clients(simulated):
    @sf.federated_computation(CLIENTS(FLOAT))
    def count(x):
        one = sf.federated_eval(lambda: 1, sf.CLIENTS)
        return sf.federated_sum(sf.federated_value(2, sf.CLIENTS)), sf.federated_sum(one)

    assert sent(count) == [[]]
    assert simulated(count, [0.5, 0.5, 0.5]) == (6, 3)


# -- no byte too many --------------------------------------------------------------------------------------


def test_each_exchange_sends_only_what_it_reads():
    @sf.federated_computation(SERVER(FLOAT), SERVER(VECTOR), CLIENTS(FLOAT))
    def three(a, unused, x):
        here = sf.federated_broadcast(a)
        _ = sf.federated_broadcast(unused)
        first = sf.federated_mean(x + here)
        second = sf.federated_mean(x * sf.federated_broadcast(first))
        return sf.federated_mean(x * sf.federated_broadcast(second) + here)

    assert sent(three) == [[((), "float32")]] * 2 + [[((), "float32")] * 2]
    assert kept(three) == [[], [], []], "a value that the server can send again is not kept"


def test_a_value_is_sent_once_in_an_exchange():
    @sf.federated_computation(SERVER(VECTOR), CLIENTS(FLOAT))
    def used_twice(w, x):
        here = sf.federated_broadcast(w)
        return sf.federated_mean(here * x), sf.federated_max(here + x)

    assert sent(used_twice) == [[((3,), "float32")]]


def test_constants_are_not_sent(simulated):
    @sf.federated_computation(CLIENTS(FLOAT))
    def shifted(x):
        table = np.array([1.0, 2.0, 3.0], np.float32)
        by = sf.federated_map(lambda x: x + jnp.asarray(table), x)
        return sf.federated_sum(by + sf.federated_eval(lambda: 0.5, sf.CLIENTS) + 1.0)

    assert sent(shifted) == [[]]
    np.testing.assert_allclose(simulated(shifted, [1.0, 2.0]), [8.0, 10.0, 12.0])


def test_a_constant_placed_at_the_clients_is_not_sent():
    @sf.federated_computation(CLIENTS(FLOAT))
    def shifted(x):
        return sf.federated_sum(x + sf.federated_value(0.5, sf.CLIENTS))

    assert sent(shifted) == [[]]


def test_the_bound_of_a_select_is_not_sent():
    @sf.federated_computation(CLIENTS(sf.TensorType(INT, (2,))), SERVER(VECTOR))
    def selected(keys, table):
        most = sf.federated_value(2, sf.SERVER)
        return sf.federated_sum(sf.sequence_sum(sf.federated_select(keys, most, table, lambda t, k: t[k])))

    assert sent(selected) == [[((3,), "float32")]]


def test_arguments_are_not_kept():
    @sf.federated_computation(CLIENTS(FLOAT), CLIENTS(VECTOR), CLIENTS(READINGS))
    def again(x, v, readings):
        first = sf.federated_broadcast(sf.federated_mean(x))
        total = sf.federated_map(lambda x, v, t: v.sum() * x - t, (x, v, sf.sequence_sum(readings)))
        return sf.federated_mean(total + first)

    assert kept(again)[0] == [((), "float32")], "the client's own sum, and neither x nor v nor the readings"


def test_a_value_that_is_used_later_is_kept_until_then():
    @sf.federated_computation(CLIENTS(FLOAT))
    def three(x):
        own = x * x
        one = sf.federated_broadcast(sf.federated_mean(own))
        two = sf.federated_broadcast(sf.federated_mean(x - one))
        return sf.federated_mean(own + two)

    middle = [1.0 - 2.5, 2.0 - 2.5]
    assert three([1.0, 2.0]) == np.float32(2.5 + np.mean(middle))
    assert three.on(sf.Simulation())([1.0, 2.0]) == np.float32(2.5 + np.mean(middle))
    assert kept(three) == [[((), "float32")], [((), "float32")], []]


def test_the_server_remembers_what_it_needs_later():
    @sf.federated_computation(SERVER(VECTOR), SERVER(FLOAT), CLIENTS(FLOAT))
    def carried(w, scale, x):
        mean = sf.federated_mean(x * sf.federated_broadcast(sf.federated_map(lambda w: (w * w).sum(), w)))
        return mean * scale

    assert len(carried.program.plan.carried) <= 4  # w, the scale, the message, the result
    assert carried.on(sf.Simulation())(np.array([1, 2, 2], np.float32), 2.0, [1.0, 3.0]) == 36.0


def test_the_server_forgets_what_it_does_not_need_later():
    @sf.federated_computation(SERVER(VECTOR), SERVER(FLOAT), CLIENTS(FLOAT))
    def carried(w, scale, x):
        length = sf.federated_map(lambda w: (w * w).sum(), w)  # w itself is not needed again
        mean = sf.federated_mean(x * sf.federated_broadcast(length))
        return mean * scale

    plan = carried.program.plan
    assert ((3,), "float32") not in shapes(plan.carried)
    assert len(plan.servers) == len(plan.clients) + 1


# -- checks ------------------------------------------------------------------------------------------------


@sf.federated_computation(CLIENTS(FLOAT), CLIENTS(INT), SERVER(INT))
def checked(x, n, _limit):
    weighted = sf.federated_mean(x, n)
    secure = sf.federated_secure_sum(n, 10)
    again = sf.federated_mean(x, n - 5 + 0 * sf.federated_broadcast(secure), empty=0.0)
    return weighted, secure, sf.federated_sum(n), again


CHECKED = checked, checked.on(sf.Simulation()), checked.on(sf.Loopback())


@pytest.mark.parametrize(
    ("n", "code"),
    [
        ([-1, 3], "SF-DATA-061"),  # also out of the secure sum's range, and negative in the second exchange
        ([11, 12], "SF-DATA-064"),  # out of range alone
        ([0, 0], "SF-DATA-063"),  # nobody weighs, and negative in the second exchange
        ([4, 5], "SF-DATA-061"),  # the second exchange alone
        ([2**30, 2**30], "SF-DATA-064"),  # out of range, and the sum leaves int32
    ],
)
def test_the_first_violated_check_is_the_same_everywhere(n, code):
    for comp in CHECKED:
        with pytest.raises(sf.DataError) as caught:
            comp([1.0, 2.0], n, 3)
        assert caught.value.code == code, comp
    assert checked([1.0, 2.0], [5, 6], 3)[1] == 11


# -- rounds ------------------------------------------------------------------------------------------------


def test_a_round_has_a_phase_for_each_exchange():
    assert [len(round_of(c).phases) for c in (fed_avg, mime, line_search)] == [1, 2, 3]
    assert [p.aggregate.keys() for p in round_of(mime).phases] == [{"0 federated_mean"}] * 2
    assert [s.group.kind for s in round_of(line_search).phases[2].aggregate.values()] == ["max"]


@pytest.mark.parametrize("comp", [fed_avg, mime, line_search], ids=lambda comp: comp.__name__)
def test_check_round_accepts_what_is_split(comp):
    rows = [np.zeros((1, 3), np.float32), np.zeros(1, np.float32), np.ones(1, bool)]
    told = sf.testing.check_round(round_of(comp), [np.zeros(3, np.float32)], rows)
    assert len(told.splitlines()) == len(pieces(comp))
    assert "phase 0:" in told


def test_check_round_accepts_checks_and_folds_of_the_users_own():
    @sf.federated_computation(CLIENTS(FLOAT), CLIENTS(INT), CLIENTS(READINGS))
    def many(x, n, readings):
        start = sf.federated_map(lambda r, x: sf.sequence_reduce(r, x, lambda t, e: t + e), (readings, x))
        again = sf.federated_map(lambda r, t: sf.sequence_reduce(r, 0.0, lambda s, e: s + e * t), (readings, start))
        total = sf.federated_aggregate(again, 0.0, lambda t, v: t + v, lambda a, b: a + b, lambda t: t * 2.0)
        return total, sf.federated_secure_modular_sum(n, 7), sf.federated_max(start)

    rows = [np.zeros(1, np.float32), np.zeros(1, np.int32), np.zeros(1, np.float32), np.ones(1, bool)]
    told = sf.testing.check_round(round_of(many), [], rows)
    assert all(f"Σ {kind}" in told for kind in ("fold", "modular", "max"))
    assert round_of(many).phases[0].work.batching.epochs == 2, "the second fold waits for the first"


def test_folds_that_wait_for_each_other_read_the_rows_again():
    @sf.federated_computation(CLIENTS(READINGS))
    def apart(readings):
        return sf.federated_sum(sf.sequence_sum(readings)), sf.federated_max(number_of_rows(readings))

    @sf.federated_computation(CLIENTS(READINGS))
    def spread(readings):
        def of_one(readings):
            total = sf.sequence_reduce(readings, (0.0, 0.0), lambda t, e: (t[0] + e, t[1] + 1.0))
            mean = total[0] / jnp.maximum(total[1], 1.0)
            return sf.sequence_reduce(readings, 0.0, lambda t, e: t + (e - mean) ** 2)

        return sf.federated_sum(sf.federated_map(of_one, readings))

    assert round_of(apart).phases[0].work.batching.epochs == 1
    assert round_of(spread).phases[0].work.batching.epochs == 2
    assert spread.on(sf.Loopback())([[1.0, 3.0], [], [5.0]]) == 2.0


def test_without_a_fold_a_client_reads_one_row():
    @sf.federated_computation(CLIENTS(FLOAT), CLIENTS(READINGS))
    def first(x, readings):
        return sf.federated_mean(x)

    assert round_of(first).phases[0].work.batching.max_steps == 1
    assert first.on(sf.Simulation())([1.0, 2.0], [[0.0] * 5, []]) == 1.5


# -- questions ---------------------------------------------------------------------------------------------


def test_only_secure_aggregation_names_what_is_not():
    @sf.federated_computation(CLIENTS(INT))
    def secure(n):
        total = sf.federated_secure_sum(n, 10)
        more = sf.federated_secure_modular_sum(n + sf.federated_broadcast(total), 8)
        return total, more, sf.federated_secure_sum_bitwidth(n, 4)

    @sf.federated_computation(CLIENTS(INT))
    def plain(n):
        total = sf.federated_secure_sum(n, 10)
        return total, sf.federated_max(n)

    @sf.federated_computation(CLIENTS(INT))
    def returned(n):
        return sf.federated_secure_sum(n, 10), n

    assert sf.check.only_secure_aggregation(secure)
    verdict = sf.check.only_secure_aggregation(plain)
    assert not verdict
    assert len(verdict.reasons) == 1
    assert re.search(r"federated_max at .*test_plan\.py:\d+", str(verdict))
    assert "a value of each client" in str(sf.check.only_secure_aggregation(returned))


def test_explain_names_each_array_that_leaves():
    told = mime.explain()
    first, second = told.split("Exchange 2")
    assert told.startswith(f"mime: {mime.type_signature}: one round, 2 exchange(s)")
    for text, message in ((first, "12 B"), (second, "24 B")):
        assert f"Sent to every client, the same bytes: {message}" in text
        leaves = text[text.index("Leaves each client") : text.index("Stays with the client")]
        assert "part '0 federated_mean': the algorithm uses only the sum over clients (add)" in leaves
        assert re.search(r"float32\[3\] +12 B", leaves)
        assert re.search(r"float32\[\] +4 B", leaves)
        assert "no row, and nothing else" in leaves
    assert re.search(r"Stays with the client, never sent\n.*float32\[3\]", first)
    assert "Stays with the client: nothing" in second


def test_explain_with_data_shows_a_step():
    told = fed_avg.explain(np.zeros(3, np.float32), DATA)
    assert re.search(r"step +\d+ operations for each batch", told)
