"""The table of names: what is offered resolves, what is not says what to write instead."""

import importlib
import re
import subprocess
import sys

import pytest

import sumfold
from sumfold import tff
from sumfold.tff.names import OFFERED, REFUSED, names_of

MODULES = ["tff", *sorted(spelled for spelled, target in OFFERED.items() if ":" not in target)]


def at(spelled):
    """The object behind a dotted name, found as a script finds it: attribute by attribute."""
    found = tff
    for name in spelled.split(".")[1:]:
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("spelled", [name for name, target in OFFERED.items() if not target.startswith("sumfold:")])
def test_every_offered_name_resolves(spelled):
    module, _, attribute = OFFERED[spelled].partition(":")
    target = importlib.import_module(module)
    assert at(spelled) is (getattr(target, attribute) if attribute else target)


def test_the_language_is_that_of_the_front_door():
    language = {name: target for name, target in OFFERED.items() if target.startswith("sumfold:")}
    renamed = {name: target for name, target in language.items() if name.split(".")[-1] != target.split(":")[1]}
    assert renamed == {
        "tff.types.at_clients": "sumfold:type_at_clients",
        "tff.types.at_server": "sumfold:type_at_server",
        "tff.tf_computation": "sumfold:computation",
        "tff.jax_computation": "sumfold:computation",
    }
    assert language["tff.jax.computation"] == language["tff.tensorflow.computation"] == "sumfold:computation"
    assert len([name for name in language if ".federated_" in name]) == 17
    assert len([name for name in language if ".sequence_" in name]) == 3


@pytest.mark.parametrize("spelled", MODULES)
def test_a_module_can_be_imported_and_lists_what_it_offers(spelled):
    module = importlib.import_module(f"sumfold.{spelled}")
    assert at(spelled) is module
    assert (module.__doc__ or "").strip()
    assert module.__all__ == dir(module) == names_of(module.__name__)
    assert module.__all__


def test_imports_of_every_form_work():
    namespace = {}
    exec("from sumfold.tff import learning\nimport sumfold.tff.learning.algorithms as algorithms", namespace)
    exec("from sumfold.tff.learning.algorithms import build_weighted_fed_avg", namespace)
    assert namespace["learning"].algorithms is namespace["algorithms"]
    assert namespace["build_weighted_fed_avg"] is tff.learning.algorithms.build_weighted_fed_avg


@pytest.mark.parametrize("spelled", sorted(REFUSED))
def test_a_refused_name_says_the_sumfold_way(spelled):
    with pytest.raises(AttributeError) as raised:
        at(spelled)
    message = str(raised.value)
    assert message.startswith(f"{spelled} is not offered; needed: ")
    assert message.endswith("[SF-COMP-070]")
    assert re.search(r"\b(sf|sumfold|tff|process|history|jax|optax|model)\.", REFUSED[spelled])
    assert not hasattr(at(spelled.rpartition(".")[0]), spelled.rpartition(".")[2])


@pytest.mark.parametrize("advice", sorted(set(REFUSED.values())))
def test_the_way_that_is_named_exists(advice):
    for dotted in re.findall(r"\btff\.[\w.]*\w", advice):
        assert dotted in OFFERED
    for dotted in re.findall(r"\bsf\.(\w[\w.]*\w)", advice):
        if f"tff.{dotted}" in OFFERED:
            continue  # the language
        found = sumfold
        for name in dotted.split("."):
            found = getattr(found, name)


def test_no_name_is_both_offered_and_refused():
    assert not set(OFFERED) & set(REFUSED)


def test_some_words_of_the_history():
    with pytest.raises(AttributeError, match=r"not their values: use tff\.federated_sum"):
        _ = tff.federated_collect
    with pytest.raises(AttributeError, match=r"sf\.learning has fed_avg"):
        _ = tff.learning.algorithms.build_fed_recon
    with pytest.raises(AttributeError, match=r"sf\.learning\.fine_tune"):
        _ = tff.learning.algorithms.build_personalization_eval_computation
    with pytest.raises(AttributeError, match=r"Federation\.from_sqlite"):
        _ = tff.simulation.datasets.SqlClientData
    with pytest.raises(AttributeError, match="from_torch or from_sklearn"):
        _ = tff.learning.models.FunctionalModel
    with pytest.raises(AttributeError, match="nothing has to be started"):
        tff.backends.native.set_sync_local_cpp_execution_context()
    with pytest.raises(AttributeError, match=r"sf\.aggregators"):
        tff.learning.robust_aggregator()
    with pytest.raises(AttributeError, match=r"Federation\.from_arrays"):
        tff.simulation.datasets.emnist.load_data()


@pytest.mark.parametrize(
    ("module", "name", "meant"),
    [
        ("tff", "federated_summ", "tff.federated_sum"),
        ("tff.learning", "build_weighted_fed_avg", "tff.learning.algorithms.build_weighted_fed_avg"),
        ("tff.learning.optimizers", "build_sgd", "tff.learning.optimizers.build_sgdm"),
        ("tff.simulation.datasets", "TestClientdata", "tff.simulation.datasets.TestClientData"),
    ],
)
def test_an_unknown_name_comes_with_close_matches(module, name, meant):
    with pytest.raises(AttributeError, match=f"module 'sumfold.{module}' has no attribute '{name}'; did you .*{meant}"):
        getattr(at(module), name)


def test_a_name_like_nothing_else_is_the_ordinary_error():
    with pytest.raises(AttributeError, match=r"^module 'sumfold\.tff' has no attribute 'zzz'$"):
        _ = tff.zzz
    assert not hasattr(tff, "__wrapped__")


@pytest.mark.parametrize(
    "program",
    [
        "import sumfold.tff",
        "from sumfold.tff import learning, simulation, jax, tensorflow, types; dir(learning)",
        "import sumfold.tff.learning.algorithms, sumfold.tff.simulation.datasets",
        "from sumfold import tff\ntry: tff.federated_collect\nexcept AttributeError: pass",
        "from sumfold import tff; tff.simulation.datasets.TestClientData",
    ],
)
def test_importing_loads_neither_jax_nor_keras(program):
    # `from sumfold import tff` is found as a submodule once it is imported
    code = f"import sumfold.tff\n{program}\nimport sys\nprint(sorted({{'jax', 'keras', 'optax'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
