"""Tests of sweeps: lost machines, stopping and going on, what is refused, what fails.

QMIX (https://arxiv.org/abs/1803.11485). Run them with: python -m pytest extras/test_sweep.py

The machines are those of ray.cluster_utils, all on this one.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

import train
from extras.test_run import same_run, truncate
from test_qmix import TINY, metrics, no_waiting_for_the_disk  # noqa: F401 a fixture

pytest.importorskip("ray", reason="Ray is not installed: extras/requirements-sweep.txt")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray
from ray.cluster_utils import Cluster

from extras import sweep
from extras.files import CHECKPOINTS, load_checkpoint
from starcraft.cluster import packed, travels, unpacked

LITTLE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
FLAGS = "--env sim --n-envs 8 --test-episodes 8 --batch-size 8 --buffer-size 30 --hidden-dim 16"
SHORT = [*FLAGS.split(), "--steps", "8000", "--test-interval", "1000"]
TWO_STEP = TINY[: TINY.index("--threads")]


def alone(folder, *argv):
    assert train.main([*argv, "--threads", "1", "--run-dir", str(folder)]) == 0
    return folder


def under_way(out):
    """How many runs have come home with their third test, but not their sixth."""
    files = out.glob("*/metrics.csv")
    return sum(4 <= len(path.read_text().splitlines()) < 7 for path in files)


def children(word):
    """Processes of runs, of any sweep on this machine, that have this word among their flags."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            found += [path.parent.name] * (sweep.CHILD in words and word in words)
    return found


def wait_for(what, seconds=120):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


# --- with Ray ------------------------------------------------------------------------------------


@pytest.fixture
def cluster():
    """Two machines of one core; the sweeps of this test use them."""
    cluster = Cluster(initialize_head=True, head_node_args=LITTLE)
    cluster.second = cluster.add_node(**LITTLE)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_eight_runs_and_a_lost_machine(cluster, tmp_path, capsys):
    """What was lost with a machine is done again elsewhere, to the same end, and no process is left
    of it; a second call does nothing."""
    out, what = tmp_path / "out", ["--maps", "3m", "--mixers", "qmix", "vdn", "--seeds", "1-4"]
    command = [*what, *SHORT, "--out", str(out), "--address", cluster.address]

    def kill():
        wait_for(lambda: under_way(out) == 2)
        cluster.remove_node(cluster.second, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    assert sweep.main(command) == 0
    killer.join()
    printed = capsys.readouterr().out
    assert printed.count(": lost (") == 1, "the run that was on the machine"
    wait_for(lambda: not children("8000"), 10)
    resumed = printed.partition(": lost (")[2].partition("goes on from t_env ")[2].split()[0]
    assert 2000 <= int(resumed) < 8000
    names = {f"3m_{mixer}_s{seed}" for mixer in ("qmix", "vdn") for seed in range(1, 5)}
    assert {path.name for path in out.iterdir()} == names
    for name in names:
        _, mixer, seed = name.split("_")
        argv = ["--map", "3m", "--mixer", mixer, "--seed", seed[1:], *SHORT]
        assert same_run(out / name, alone(tmp_path / name, *argv)), name
        assert not (out / name / "buffer").exists()
    name = min(names)
    here, there = (json.loads((x / name / "config.json").read_text()) for x in (tmp_path, out))
    assert here["versions"] == there["versions"] and here["versions"]["git"]
    assert here["flags"].keys() == there["flags"].keys()

    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    ray.shutdown()
    assert sweep.main(command) == 0
    assert "nothing to do" in capsys.readouterr().out and not ray.is_initialized()
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times


def test_stopped_by_ctrl_c_and_begun_again(tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    argv = [*FLAGS.split(), "--steps", "20000", "--test-interval", "4000"]
    command = [sys.executable, "-m", "extras.sweep", "--maps", "3m", "--mixers", "qmix", "vdn"]
    command += [*argv, "--out", str(out)]
    place = {"cwd": sweep.HERE, "text": True}
    before = private_directories()
    with open(log, "w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, start_new_session=True, **place
        )
        wait_for(lambda: under_way(out) or process.poll() is not None)
        listening = outside_of_this_machine(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(60) == 128 + signal.SIGINT, log.read_text()
    assert not listening
    assert "The same command goes on" in log.read_text() and "Traceback" not in log.read_text()
    t_env = [int(metrics(path.parent)[-1]["t_env"]) for path in out.glob("*/metrics.csv")]
    saved = [load_checkpoint(path.parent)[0]["progress"] for path in out.glob("*/metrics.csv")]
    # Unless both are stopped in the middle of a test, which is rare with so few tests.
    assert max(t_env) < 20_000 and t_env != [progress["t_env"] for progress in saved]
    assert private_directories() <= before, "nothing stays behind"
    done = subprocess.run(command, capture_output=True, **place)
    assert done.returncode == 0, done.stderr
    assert "2 done, 0 running, 0 left" in done.stdout
    assert same_run(out / "3m_qmix_s1", alone(tmp_path / "alone", "--map", "3m", *argv))


def private_directories():
    return set(Path(tempfile.gettempdir()).glob("qmix-run-*"))


def outside_of_this_machine(pid):
    """Addresses, other than this machine's own, at which a process or one below it listens."""
    psutil = pytest.importorskip("psutil")
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    connections = [c for process in family for c in process.net_connections()]
    assert any(c.status == "LISTEN" for c in connections)
    return {c.laddr.ip for c in connections if c.status == "LISTEN"} - {
        "127.0.0.1",
        "::ffff:127.0.0.1",
    }


def test_a_run_that_fails_is_reported_and_the_others_go_on(tmp_path, cluster, capsys):
    out = tmp_path / "out"
    command = ["--seeds", "1", "2", *TWO_STEP, "--out", str(out), "--address", cluster.address]
    half = alone(out / "two_step_qmix_s1", *TWO_STEP, "--steps", "300")
    config = json.loads((half / "config.json").read_text())
    config["flags"]["steps"] = 600
    (half / "config.json").write_text(json.dumps(config))
    truncate(half / "checkpoint.pt")
    (half / "checkpoint.prev.pt").unlink()
    capsys.readouterr()
    assert sweep.main(command) == 1
    printed = capsys.readouterr()
    assert "two_step_qmix_s1 failed: exit status 2; its last lines:" in printed.err
    assert "no whole checkpoint is left" in printed.err
    assert "1 done, 0 running, 0 left, 1 failed" in printed.out
    assert int(metrics(out / "two_step_qmix_s2")[-1]["t_env"]) == 600


# --- without ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--maps", "3mm"], "unknown map '3mm'"),
        (["--seeds", "5-1"], "--seeds: 5-1 is not a seed, as 3, or a range, as 1-5"),
        (["--seeds", "1,2"], "--seeds: 1,2 is not a seed"),
        (["--seeds", "1-2000000000"], "--seeds: 1-2000000000 is not a seed"),
        (["--mixers", "qmixx"], "--mixers"),
        (["--stepps", "3"], "--stepps"),
        (["--lr", "-1"], "--lr"),
        (["--batch-size", "9", "--buffer-size", "8"], "--batch-size 9"),
        (["--env-args", "speed=3"], "unknown option 'speed'"),
        (["--threads", "2"], "--threads is not for the runs of a sweep: give --cores"),
        (["--env", "two_step", "--maps", "3m", "8m"], "environment two_step knows no maps"),
        (["--resume=x"], "--resume is not for"),
        (["--cores", "0"], "--cores"),
        (["--address", "127.0.0.1:1"], "no Ray cluster at 127.0.0.1:1"),
    ],
)
def test_bad_flags_are_refused_before_anything_starts(tmp_path, capsys, argv, message):
    with pytest.raises(SystemExit) as exit_:
        sweep.main(["--env", "sim", "--steps", "600", "--out", str(tmp_path / "out"), *argv])
    err = capsys.readouterr().err
    assert exit_.value.code == 2
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists() and not ray.is_initialized()


def test_a_test_that_is_done_again_is_no_progress(tmp_path):
    """A run whose machine is lost after each row of metrics.csv, before its checkpoint, fails."""
    job = sweep.Job(tmp_path, [], {"steps": 9000})
    driver = sweep.Sweep.__new__(sweep.Sweep)
    driver.signal, driver.ask = 0, lambda *_: None
    for t_env, lost in ((1000, 0), (500, 2), (1000, 2), (1500, 0)):
        job.lost, job.receive = 2, lambda *_, t_env=t_env: setattr(job, "t_env", t_env)
        driver.take(job, None, [], {}, [])
        assert job.lost == lost


def test_a_run_that_somebody_has_spoilt_fails_alone(tmp_path):
    (tmp_path / "metrics.csv").write_text("t_env,test_win_rate\n5,high\n")
    job = sweep.Job(tmp_path, [], {"steps": 9000})
    driver = sweep.Sweep.__new__(sweep.Sweep)
    driver.jobs = [job]
    driver.take(job, None, [], {}, [])
    assert "is damaged (could not convert string to float: 'high'): move it away" in job.failure


def test_two_sweeps_in_one_place(tmp_path, capsys):
    lock = sweep.Lock(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        sweep.main(["--env", "sim", "--maps", "3m", "--out", str(tmp_path)])
    err = capsys.readouterr().err
    assert exit_.value.code == 2 and "another process trains in" in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
    lock.release()


def test_other_flags_than_those_of_a_run_that_is_there(tmp_path, capsys):
    out = tmp_path / "out"
    alone(out / "two_step_qmix_s1", *TWO_STEP)
    command = ["--out", str(out), *TWO_STEP]
    assert sweep.main(command) == sweep.main([*command, "--save-buffer", "no"]) == 0
    assert capsys.readouterr().out.count("nothing to do") == 2
    for flags, message in (
        (["--lr", "0.5"], "was begun with --lr 0.002, not 0.5"),
        (["--n-envs", "8"], "was begun with --n-envs 4, not 8"),
        (["--no-double-q"], "was begun with --no-double-q False, not True"),
    ):
        with pytest.raises(SystemExit) as exit_:
            sweep.main([*command, *flags])
        err = capsys.readouterr().err
        assert exit_.value.code == 2 and message in err and err.count("\n") == 1


def test_results_without_checkpoints(tmp_path, capsys):
    """As they are kept in results/: finished ones count, others are not begun anew."""
    out = tmp_path / "out"
    folder = alone(out / "two_step_qmix_s1", *TWO_STEP)
    for name in CHECKPOINTS:
        (folder / name).unlink()
    assert sweep.main(["--out", str(out), *TWO_STEP]) == 0
    lines = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    (folder / "metrics.csv").write_text("".join(lines[:4]))
    with pytest.raises(SystemExit) as exit_:
        sweep.main(["--out", str(out), *TWO_STEP])
    assert exit_.value.code == 2
    assert "is not finished, and has no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("here", [False, True], ids=["elsewhere", "here"])
def test_a_run_comes_home_whole_whenever_it_is_looked_at(tmp_path, monkeypatch, here):
    """A runner that is killed in the middle, without Ray: what came home goes on, exactly. On the
    driver's machine it is at home from the start, and nothing travels."""
    for name in ("NEWS", "LOOK"):
        monkeypatch.setattr(sweep, name, 0.01)  # the whole run takes a second
    sources, argv = packed(sweep.HERE, *sweep.SOURCES), [*TWO_STEP, "--threads", "1"]
    whole, job = alone(tmp_path / "whole", *argv[:-2], "--steps", "1200"), tmp_path / "job"
    job = sweep.Job(job, [*argv, "--steps", "1200"], {"steps": 1200})
    runner, sittings = sweep.Runner(), 1
    runner.start(sources, {}, job.argv, job.folder if here else None)
    status = None
    while status is None:
        status, names, files, lines = runner.news(False)
        assert not (here and files)
        job.receive(names, files)
        if job.t_env and sittings == 1:
            os.close(runner.ours)  # as the system does when the runner is killed
            assert runner.process.wait(10) == -signal.SIGKILL
            shutil.rmtree(runner.home)
            runner, sittings, status = sweep.Runner(), 2, None
            files = {} if here else job.files()
            runner.start(sources, files, job.argv, job.folder if here else None)
    assert status == 0 and sittings == 2, lines
    assert job.done and same_run(whole, job.folder)
    assert not runner.home.exists()


def test_a_disk_that_is_full_at_home_ends_the_sweep_in_one_line(
    tmp_path, cluster, capsys, monkeypatch
):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sweep, "write_atomic", full)
    command = [*TWO_STEP, "--out", str(tmp_path / "out"), "--address", cluster.address]
    assert sweep.main(command) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "No space left on device" in err
    assert not (tmp_path / "out").exists()


def test_what_travels(tmp_path):
    """A machine needs no file of this project to begin, and gets no results, runs or repository."""
    travels("extras.sweep")
    (tmp_path / "runner").write_bytes(ray.cloudpickle.dumps(sweep.Runner))
    code = "import pickle, sys; pickle.load(open('runner', 'rb'))"
    code += "; assert not {'train', 'extras', 'starcraft'} & set(sys.modules)"
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)
    folder = unpacked(packed(sweep.HERE, *sweep.SOURCES))
    assert {path.name for path in folder.iterdir()} >= {"train.py", "extras", "starcraft"}
    names = {path.relative_to(folder).parts[0] for path in folder.rglob("*") if path.is_file()}
    assert not names & {"results", "runs", ".git", ".venv"}
    assert Path(sweep.HERE / "train.py").read_bytes() == (folder / "train.py").read_bytes()
