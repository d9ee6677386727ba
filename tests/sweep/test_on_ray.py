"""Sweeps on a real Ray cluster of two nodes: the same runs as here, whatever happens to the workers."""

import contextlib
import json
import shutil
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml
from tiny_text import save, sums, tiny_llama, write_rows

from hessian_lr.cli import main
from hessian_lr.sweep.on_ray import RETRIES
from hessian_lr.sweep.run import RunResult, precision

ray = pytest.importorskip("ray")
NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of a CPU each on this machine; their folder goes with them, whatever a test did."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_prestart_worker_first_driver", "0")
        patch.setenv("RAY_worker_niceness", "0")  # Ray's own 15 starves them where others use the cores
        # Short: the names of sockets in it may have 107 characters.
        scratch = Path(tempfile.mkdtemp(prefix="r"))
        (scratch / "ray").mkdir()
        patch.setenv("RAY_TMPDIR", str(scratch))
        made = None
        try:
            try:
                made = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
                made.add_node(**NODE)
            except Exception as error:
                pytest.skip(f"no Ray cluster of two nodes starts on this machine: {error}")
            patch.setenv("RAY_ADDRESS", made.address)
            yield made
        finally:
            if ray.is_initialized():
                ray.shutdown()
            if made is not None:
                made.shutdown()
            shutil.rmtree(scratch, ignore_errors=True)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model and data on disk: the workers are other processes."""
    root = tmp_path_factory.mktemp("ray")
    save(tiny_llama(initializer_range=0.2), root / "model")
    write_rows(root / "rows.jsonl", sums(6))
    return root


def write(folder, name, **changes):
    """A sweep's file; its paths are relative, so that they hold in the workers too."""
    common = {"model": "model", "data": "rows.jsonl", "rank": 2, "steps": 4, "device": "cpu"}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(common | {"dtype": "float32"} | changes))
    return file


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def contents(out):
    """Each run by its file's name, without the time it took."""
    found = {path.name: RunResult.read(path).to_dict() for path in (out / "runs").iterdir()}
    for run in found.values():
        del run["seconds"]
    return found


def document(out):
    """What the sweep tells, without times and notes."""
    told = json.loads((out / "sweep.json").read_text())
    for row in told["results"]:
        del row["sweep_seconds"]
        for run in row["runs"]:
            del run["seconds"]
    return told["varying"], told["results"]


def sweep(file, out, *more):
    return main(["sweep", str(file), "--out", str(out), *more])


def trainers(doing=""):
    """The worker processes of the cluster that hold a model, and do what their title tells."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()[:1]).startswith(f"ray::_Trainer{doing}"):
                found.append(process)
    return found


@pytest.fixture(scope="module")
def file(folder):
    """A search of five runs, and two runs of another method."""
    grid = {"method": "pissa", "lr": 1e-3, "seed": [0, 1]}
    return write(folder, "mixed", lr={"auto": 0.3}, include=[grid])


@pytest.fixture(scope="module")
def local(folder, file, tmp_path_factory):
    """The same, made in this process."""
    out = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert sweep(file, out, "--quiet") == 0
    return out


def test_begun_here_and_finished_there_with_a_worker_killed_it_is_the_same_sweep(
    cluster, here, file, local, tmp_path, capsys
):
    out, killed, over = tmp_path / "out", [], threading.Event()
    (out / "runs").mkdir(parents=True)
    first = Path(shutil.copy(min((local / "runs").iterdir()), out / "runs"))
    begun = first.read_bytes(), first.stat().st_mtime_ns

    def kill():
        """End a worker that is training once the first run has come from the cluster."""
        while not over.wait(0.01) and not killed:
            if len(list((out / "runs").glob("*.json"))) > 1:
                for busy in trainers(".train")[:1]:
                    busy.kill()
                    killed.append(busy.pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        assert sweep(file, out, "--engine", "ray") == 0
    finally:
        over.set()
        killer.join()
    assert len(killed) == 1, "the sweep ended before a worker was killed"
    assert (first.read_bytes(), first.stat().st_mtime_ns) == begun
    assert contents(out) == contents(local)
    assert document(out) == document(local)
    (lost,) = (note for note in json.loads((out / "sweep.json").read_text())["notes"] if "was lost" in note)
    assert lost.startswith(f"worker {killed[0]} on {socket.gethostname()} was lost with ")
    assert f"retry 1 of {RETRIES}" in lost
    assert "2 at a time on the cluster" in " ".join(capsys.readouterr().err.split())
    assert not ray.is_initialized()
    ended_by = time.monotonic() + 30
    while trainers() and time.monotonic() < ended_by:
        time.sleep(0.1)
    assert not trainers(), "workers are left after the sweep"


def test_an_error_of_a_run_is_told_with_its_node_and_not_tried_again(cluster, here, tmp_path, capsys):
    """A file that is gone when the workers look for it."""
    file = write(here, "broken", lr=1e-3)
    engine = "hessian_lr.sweep.on_ray.precision"

    def remove(setting):
        (here / "rows.jsonl").rename(here / "away")
        return precision(setting)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, remove)
        try:
            assert sweep(file, tmp_path, "--engine", "ray", "--quiet") == 1
        finally:
            (here / "away").rename(here / "rows.jsonl")
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("lora: failed"))
    assert "there is no file rows.jsonl" in line and line.endswith(f"(on {socket.gethostname()})")


def test_a_run_that_no_node_has_room_for_is_refused(cluster, here, file, tmp_path, capsys):
    more = ("--engine", "ray", "--cpus-per-run", "2")
    assert sweep(file, tmp_path, *more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no node of the cluster has 2 CPUs and 0 GPUs for a run (its nodes: 1 CPUs, 0 GPUs; 1 CPUs" in line


WRONG = {
    "nobody": ("127.0.0.1:1", "there is no Ray cluster at 127.0.0.1:1"),
    "client": ("ray://127.0.0.1:1", "--address takes host and port"),
    "no port": ("localhost", "--address takes host and port"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_address_is_one_line_at_once(here, file, tmp_path, capsys, name):
    address, message = WRONG[name]
    began = time.perf_counter()
    assert sweep(file, tmp_path, "--engine", "ray", "--address", address) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hessian-lr: error: ") and message in line
    assert time.perf_counter() - began < 30, "Ray itself waits for more than a minute"


def test_a_port_at_which_something_else_listens_is_told(here, file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hessian_lr.sweep.join_ray._ANSWER_S", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert sweep(file, tmp_path, "--engine", "ray", "--address", address) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"something answers at {address}, but it is no Ray cluster" in line


def test_without_ray_the_command_that_installs_it_is_told(here, file, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert sweep(file, tmp_path, "--engine", "ray") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "hessian-lr: error: --engine ray needs Ray: pip install 'hessian-lr[ray]'"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--engine", "rey"), "unknown engine 'rey'. Did you mean 'ray'?"),
        (("--address", "a:1"), "--address is for --engine ray"),
        (
            ("--engine", "ray", "--cpus-per-run", "0"),
            "--cpus-per-run takes a whole number of 1 to 2,147,483,647",
        ),
        (
            ("--engine", "ray", "--cpus-per-run", "1" + 400 * "0"),
            "--cpus-per-run takes a whole number of 1 to",
        ),
        (
            ("--engine", "ray", "--gpus-per-run", "1.5"),
            "--gpus-per-run takes 0 to 1, or a whole number above",
        ),
        (("--engine", "ray", "--gpus-per-run", "-1"), "or a whole number above, not -1"),
        (("--engine", "ray", "--gpus-per-run", "nan"), "or a whole number above, not nan"),
    ],
)
def test_wrong_options_are_one_line(here, file, tmp_path, capsys, more, message):
    assert sweep(file, tmp_path, *more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
