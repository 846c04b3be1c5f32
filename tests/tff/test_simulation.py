"""Client data in memory, its datasets, and the draw of a round's clients."""

from collections import Counter, OrderedDict

import keras
import numpy as np
import pytest

from sumfold import tff
from sumfold.errors import CompositionError, DataError
from sumfold.tff.simulation.dataset import Dataset, TensorSpec

TestClientData = tff.simulation.datasets.TestClientData
FLOAT, INT = np.dtype("float32"), np.dtype("int64")


def numbers(n=5):
    return Dataset.from_tensor_slices(np.arange(n))


def values(dataset):
    return [np.asarray(element).tolist() for element in dataset]


def client_data():
    return TestClientData(
        {
            "a": OrderedDict(x=np.ones((3, 2), np.float32), y=np.arange(3)),
            "b": OrderedDict(x=np.zeros((2, 2), np.float32), y=np.arange(2)),
            "c": OrderedDict(x=np.zeros((1, 2), np.float32), y=np.arange(1)),
        }
    )


# -- datasets --------------------------------------------------------------------------------------------


def test_elements_are_rows_and_can_be_read_again():
    dataset = Dataset.from_tensor_slices((np.arange(4.0).reshape(2, 2), [5, 6]))
    for _ in range(2):
        assert [(x.tolist(), y.tolist()) for x, y in dataset] == [([0, 1], 5), ([2, 3], 6)]
    assert len(dataset) == dataset.cardinality() == 2
    assert dataset.element_spec == (TensorSpec((2,), np.dtype(float)), TensorSpec((), INT))
    assert len(list(dataset.as_numpy_iterator())) == 2


def test_batches():
    assert values(numbers().batch(2)) == [[0, 1], [2, 3], [4]]
    assert values(numbers().batch(2, drop_remainder=True)) == [[0, 1], [2, 3]]
    assert (len(numbers().batch(2)), len(numbers().batch(2, drop_remainder=True))) == (3, 2)
    assert numbers().batch(2).element_spec == TensorSpec((None,), INT)
    assert numbers().batch(2, drop_remainder=True).element_spec == TensorSpec((2,), INT)
    assert values(numbers().batch(2).batch(2))[0] == [[0, 1], [2, 3]]


def test_repeat_take_and_concatenate():
    assert values(numbers(2).repeat(2)) == [0, 1, 0, 1]
    assert values(numbers(2).repeat().take(5)) == [0, 1, 0, 1, 0]
    assert values(numbers(2).repeat(0)) == values(numbers(0).repeat()) == []
    assert numbers(2).repeat().cardinality() == numbers(2).repeat(-1).batch(2).cardinality() == -1
    assert (len(numbers(2).repeat(3)), len(numbers(2).repeat().take(5)), len(numbers(2).take(7))) == (6, 5, 2)
    assert numbers(2).take(-1).cardinality() == 2
    assert values(numbers(2).concatenate(numbers(1))) == [0, 1, 0]
    assert values(numbers(2).prefetch(3).cache()) == [0, 1]
    with pytest.raises(TypeError, match="never ends"):
        len(numbers(2).repeat())
    assert numbers(2).repeat()


def test_shuffle_draws_from_a_buffer():
    dataset = numbers(20).shuffle(20, seed=1)
    first, second = values(dataset), values(dataset)
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first == values(numbers(20).shuffle(20, seed=1))
    assert values(numbers(20).shuffle(20)) != values(numbers(20).shuffle(20))
    still = numbers(20).shuffle(20, seed=1, reshuffle_each_iteration=False)
    assert values(still) == values(still)
    assert values(numbers(20).shuffle(1)) == list(range(20))
    assert all(value <= place + 2 for place, value in enumerate(values(numbers(20).shuffle(3, seed=0))))
    assert len(values(numbers(3).repeat().shuffle(2).take(7))) == 7


def test_map_takes_a_tuple_apart_and_keeps_the_free_axis():
    pairs = Dataset.from_tensor_slices((np.ones((3, 2), np.float32), np.arange(3)))
    mapped = pairs.batch(2).map(lambda x, y: OrderedDict(x=x.reshape(-1, 2, 1), y=y[:, None]), num_parallel_calls=2)
    assert mapped.element_spec == {"x": TensorSpec((None, 2, 1), FLOAT), "y": TensorSpec((None, 1), INT)}
    assert [batch["y"].tolist() for batch in mapped] == [[[0], [1]], [[2]]]
    assert values(mapped.map(lambda element: element["y"].sum())) == [1, 2]
    assert values(numbers(3).map(lambda n: 2 * n)) == [0, 2, 4]
    assert numbers(0).batch(2).map(lambda n: n + 0.5).element_spec == TensorSpec((None,), np.dtype(float))


@pytest.mark.parametrize(
    "call",
    [
        lambda d: d.batch(0),
        lambda d: d.batch(2.5),
        lambda d: d.shuffle(0),
        lambda d: d.repeat(-2),
        lambda d: d.take(-2),
        lambda d: d.take(True),
    ],
)
def test_a_number_out_of_range(call):
    with pytest.raises(CompositionError, match=r"needed: a whole number of at least [01].*SF-COMP-077"):
        call(numbers())


@pytest.mark.parametrize("arrays", [(), {}, (np.ones(2), np.ones(3))])
def test_arrays_must_have_one_length(arrays):
    with pytest.raises(DataError, match="SF-DATA-003"):
        Dataset.from_tensor_slices(arrays)


# -- client data -----------------------------------------------------------------------------------------


def test_clients_by_id():
    data = client_data()
    assert data.client_ids == ["a", "b", "c"]
    assert [element["y"].tolist() for element in data.create_tf_dataset_for_client("a")] == [0, 1, 2]
    assert data.element_type_structure == {"x": TensorSpec((2,), FLOAT), "y": TensorSpec((), INT)}
    assert sorted(len(dataset) for dataset in data.datasets(seed=0)) == [1, 2, 3]
    assert len(list(data.datasets(limit_count=2))) == 2
    assert len(data.create_tf_dataset_from_all_clients(seed=0)) == 6
    assert repr(data) == "TestClientData(3 clients)"
    assert isinstance(data, tff.simulation.datasets.ClientData)


def test_preprocess_and_split():
    data = client_data().preprocess(lambda dataset: dataset.repeat(2).batch(4))
    assert [len(batch["y"]) for batch in data.create_tf_dataset_for_client("a")] == [4, 2]
    assert data.element_type_structure["x"] == TensorSpec((None, 2), FLOAT)
    train, test = tff.simulation.datasets.ClientData.train_test_client_split(data, 1, seed=0)
    assert sorted(train.client_ids + test.client_ids) == ["a", "b", "c"]
    assert len(test.client_ids) == 1
    again, _ = TestClientData.train_test_client_split(data, num_test_clients=1, seed=0)
    assert again.client_ids == train.client_ids


def test_what_client_data_refuses():
    with pytest.raises(DataError, match=r"the client id 'z'; needed: one of \['a', 'b', 'c'\].*SF-DATA-011"):
        client_data().create_tf_dataset_for_client("z")
    with pytest.raises(CompositionError, match="SF-COMP-078"):
        TestClientData([np.ones(3)])
    with pytest.raises(DataError, match=r"num_test_clients=3 of 3 clients.*SF-COMP-079"):
        TestClientData.train_test_client_split(client_data(), 3)
    with pytest.raises(DataError, match=r"without clients.*SF-COMP-079"):
        _ = TestClientData({}).element_type_structure
    with pytest.raises(DataError, match="SF-COMP-079"):
        TestClientData({}).create_tf_dataset_from_all_clients()


@pytest.mark.jax_defaults
def test_a_simulation_as_a_tff_script_writes_it():
    random = np.random.default_rng(0)
    arrays = {}
    for name in "abcd":
        x = random.normal(size=(12, 3)).astype(np.float32)
        arrays[name] = OrderedDict(pixels=x, label=(x.sum(1, keepdims=True) > 0).astype(np.int32))
    source = TestClientData(arrays)

    def preprocess(dataset):
        def batch_format(element):
            return OrderedDict(x=element["pixels"], y=element["label"])

        return dataset.repeat(2).shuffle(100, seed=1).batch(8).map(batch_format).prefetch(10)

    def model_fn():
        return tff.learning.models.from_keras_model(
            keras.Sequential([keras.layers.Dense(1, activation="sigmoid")]),
            loss=keras.losses.BinaryCrossentropy(),
            input_spec=preprocess(source.create_tf_dataset_for_client("a")).element_spec,
            metrics=[keras.metrics.BinaryAccuracy()],
        )

    process = tff.learning.algorithms.build_weighted_fed_avg(
        model_fn,
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(learning_rate=0.5),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(learning_rate=1.0, momentum=0.5),
    )
    sample = tff.simulation.build_uniform_sampling_fn(source.client_ids, random_seed=0)
    state = process.initialize()
    for round_num in range(6):
        chosen = sample(round_num, 2)
        result = process.next(state, [preprocess(source.create_tf_dataset_for_client(c)) for c in chosen])
        state = result.state
    train = result.metrics["client_work"]["train"]
    assert (train["num_examples"], train["num_batches"], train["num_clients"]) == (48, 6, 2)
    assert train["binary_accuracy"] > 0.85


def test_an_endless_dataset_and_one_of_single_examples_are_refused():
    def model_fn():
        net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        return tff.learning.from_keras_model(net, keras.losses.MeanSquaredError(), client_data().element_type_structure)

    process = tff.learning.algorithms.build_weighted_fed_avg(model_fn, lambda: keras.optimizers.SGD(0.1))
    dataset = client_data().create_tf_dataset_for_client("a")
    with pytest.raises(DataError, match="SF-DATA-015"):
        process.next(process.initialize(), [dataset.repeat().batch(2)])
    with pytest.raises(DataError, match=r"SF-DATA-00[38]"):
        process.next(process.initialize(), [dataset])


# -- sampling --------------------------------------------------------------------------------------------


def test_sampling_is_uniform_and_follows_from_the_round():
    sample = tff.simulation.build_uniform_sampling_fn(["a", "b", "c", "d"], random_seed=1)
    drawn = [sample(round_num, 2) for round_num in range(400)]
    assert all(len(set(pair)) == 2 for pair in drawn)
    assert all(160 < count < 240 for count in Counter(c for pair in drawn for c in pair).values())
    assert drawn[7] == sample(7, 2) == tff.simulation.build_uniform_sampling_fn("abcd", random_seed=1)(7, 2)
    assert tff.simulation.build_uniform_sampling_fn(range(10**6))(0, 3) != tff.simulation.build_uniform_sampling_fn(
        range(10**6)
    )(0, 3)
    assert sample(0, 0) == []


def test_sampling_with_replacement():
    sample = tff.simulation.build_uniform_sampling_fn(["a"], replace=True, random_seed=0)
    assert sample(0, 3) == ["a", "a", "a"]


@pytest.mark.parametrize(("ids", "replace", "size"), [("ab", False, 3), ("", True, 1), ("ab", False, -1)])
def test_a_sample_that_cannot_be_drawn(ids, replace, size):
    with pytest.raises(DataError, match=r"a sample of .*SF-COMP-079"):
        tff.simulation.build_uniform_sampling_fn(ids, replace=replace, random_seed=0)(0, size)
