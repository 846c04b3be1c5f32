"""Starting the processes of a run, starting them again when one is lost, and what the command line refuses."""

import signal
import sys

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

import sumfold as sf
from sumfold.cli.main import app
from sumfold.simulation.supervisor import LOST, saved_round, supervise

JOB = "def build():\n    raise AssertionError('these commands are refused before')\n"


class Given:
    """A process that ended as it was told to."""

    def __init__(self, code, words="") -> None:
        self.code, self.said = code, words

    def poll(self):
        return self.code

    def interrupt(self) -> None: ...

    def kill(self) -> None: ...

    def words(self):
        return self.said

    def output(self):
        return "written"


class Script:
    """Gangs that end as they were told to, one after the other."""

    def __init__(self, *gangs) -> None:
        self.gangs, self.sizes = list(gangs), []

    def start(self, command, size):
        self.sizes.append(size)
        if self.gangs[0] is OSError:
            raise self.gangs.pop(0)("no room")
        return [one if isinstance(one, Given) else Given(one) for one in self.gangs.pop(0)]


def supervised(starter, size=2, restarts=3, saved=lambda: 0):
    said = []
    return supervise(starter, ["x"], size, restarts, saved, said.append), said


def test_the_job_s_own_failure_is_not_repeated() -> None:
    starter = Script([LOST, Given(1, "its traceback")])
    (code, _), said = supervised(starter)
    assert (code, starter.sizes) == (1, [2])
    assert "its traceback" in said[0]
    assert supervised(Script([2, 2]))[0][0] == 2


def test_a_program_that_ends_itself_is_no_answer_of_sumfold_s() -> None:
    (code, _), said = supervised(Script([Given(3), LOST]))  # 3 of Sumfold's would be a refusal by policy
    assert (code, said) == (1, ["process 0 ended with code 3"])
    (code, _), said = supervised(Script([0, Given(7, "its words")]))
    assert (code, said) == (1, ["process 1 ended with code 7; it said:\nits words"])


def test_a_lost_process_is_named_and_all_start_again() -> None:
    starter = Script([-signal.SIGABRT, -signal.SIGKILL], [0, 0])
    (code, output), said = supervised(starter)
    assert (code, output, starter.sizes) == (0, "written", [2, 2])
    assert said == ["process 1 was killed by SIGKILL (out of memory?); starting again with 2 processes after round 0"]


def test_without_progress_there_is_one_process_less_each_time() -> None:
    starter = Script(*[[-9, LOST, LOST]] * 4, [0, 0])
    assert supervised(starter, size=3, restarts=5)[0][0] == 0
    assert starter.sizes == [3, 3, 2, 1, 1]
    rounds = iter(range(100))
    starter = Script(*[[-9, LOST, LOST]] * 4, [0, 0])
    assert supervised(starter, size=3, restarts=5, saved=lambda: next(rounds))[0][0] == 0
    assert starter.sizes == [3] * 5


def test_processes_that_cannot_be_started_again_are_done_without() -> None:
    starter = Script([-9, LOST, LOST], OSError, [0, 0])
    assert supervised(starter, size=3)[0][0] == 0
    assert starter.sizes == [3, 3, 2]
    with pytest.raises(OSError, match="no room"):
        supervised(Script(OSError))


def test_restarts_end() -> None:
    with pytest.raises(sf.ProcessError, match=r"SIGKILL.*after 1 restarts.*--checkpoint DIR") as info:
        supervised(Script([-9, LOST], [-9, LOST]), restarts=1)
    assert info.value.code == "SF-PROC-030"


def test_the_newest_round_of_a_folder(tmp_path) -> None:
    assert saved_round(None) == saved_round(tmp_path) == 0
    (tmp_path / "round-00000011.safetensors").touch()
    (tmp_path / "round-00000012.safetensors").touch()
    assert saved_round(tmp_path) == 12


@pytest.mark.parametrize(
    ("words", "code", "exit_code", "said"),
    [
        (("--launcher", "slurm"), "SF-CLI-032", 2, "no program 'srun' on this machine"),
        (("--launcher", "ray"), "SF-EXTRA-001", 2, "the extra 'ray' brings"),
        (("--launcher", "pbs"), "SF-CLI-031", 2, "one of local, slurm, mpi, ray"),
        (("--restarts", "1"), "SF-CLI-033", 2, "add --checkpoint DIR"),
        (("--rank", "0"), "SF-PROC-001", 2, "processes and coordinator too"),
        (("--rank", "1", "--coordinator", "127.0.0.1:1", "--deadline", "0.1"), "SF-PROC-010", 4, "nobody answered"),
    ],
    ids=["no srun", "no ray", "no such launcher", "restarts", "rank alone", "nobody answers"],
)
def test_the_command_line_says_what_is_wrong(words, code, exit_code, said, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "job.py").write_text(JOB, "utf-8")
    words = ["simulate", str(tmp_path / "job.py"), "--processes", "2", *words]
    result = CliRunner().invoke(app, words, prog_name="sumfold")
    assert result.exit_code == exit_code
    assert f"[{code}]" in result.stderr
    assert said in result.stderr


def test_no_time_at_all_is_wrong_use(tmp_path) -> None:
    (tmp_path / "job.py").write_text(JOB, "utf-8")
    words = ["simulate", str(tmp_path / "job.py"), "--processes", "2", "--deadline", "0"]
    result = CliRunner().invoke(app, words, prog_name="sumfold")
    assert result.exit_code == 2
    assert "--deadline" in result.stderr


def test_a_loss_that_raises_is_shown_with_the_line_of_the_user_s_file(tmp_path) -> None:
    job = tmp_path / "job.py"
    job.write_text(
        "import jax.numpy as jnp, numpy as np, optax, sumfold as sf\n"
        "def loss(outputs, y):\n"
        "    raise LookupError('no such column')\n"
        "def build():\n"
        "    model = sf.models.from_functions(lambda key: jnp.zeros(3), lambda w, x: x @ w, loss)\n"
        "    return sf.learning.fed_avg(model, optax.sgd(0.1)), [(np.zeros((2, 3)), np.zeros(2))]\n",
        "utf-8",
    )
    result = CliRunner().invoke(app, ["simulate", str(job), "--rounds", "1"], prog_name="sumfold")
    assert result.exit_code == 1
    assert f'File "{job}", line 3, in loss' in result.stderr
    assert "[SF-TYPE-002]" in result.stderr.splitlines()[-1]


def test_at_most_one_process_for_each_gpu(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv("JAX_PLATFORMS")
    (tmp_path / "job.py").write_text(JOB, "utf-8")
    result = CliRunner().invoke(app, ["simulate", str(tmp_path / "job.py"), "--processes", "2"], prog_name="sumfold")
    assert result.exit_code == 2
    assert "--processes 2 on a machine with 1 GPU; needed: at most one process for each GPU" in result.stderr


def test_a_job_for_another_runtime_is_refused() -> None:
    from sumfold.cli.many import distributed

    process = sf.learning.kmeans(clusters=2, features=1)
    with pytest.raises(sf.CompositionError, match=r"leave \.on\(…\) out of build") as info:
        distributed(process.on(sf.Loopback()), 1.0)
    assert info.value.code == "SF-CLI-035"
    assert isinstance(distributed(process.on(sf.Processes(1)), 1.0).runtime, sf.Processes)


def test_a_program_that_holds_the_gpu_cannot_start_processes(monkeypatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    process = sf.learning.kmeans(clusters=2, features=1).on(sf.Processes(2))
    with pytest.raises(sf.CompositionError, match=r"Processes\(2\) in a program that itself holds the gpu") as info:
        process.next(process.initialize(), [np.zeros((2, 1))])
    assert info.value.code == "SF-PROC-007"
