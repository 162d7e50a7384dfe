"""Tests of what strangers' machines and files do to a run: two runs at once, closed terminals,
edited checkpoints, read-only folders, containers.

QMIX (https://arxiv.org/abs/1803.11485). Run them with: python -m pytest extras/test_faults.py
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import envs
import train
from extras import files, plot, run
from extras.test_resume import stop_at
from extras.test_run import resume, same_run
from starcraft import machine
from starcraft.simulator import BattleSim
from test_qmix import (
    TINY,
    metrics,
    no_waiting_for_the_disk,  # noqa: F401 a fixture that all tests here use
    start,
)

HERE = Path(__file__).resolve().parents[1]


def script(*argv, **options):
    """train.py in a process of its own, started."""
    command = [sys.executable, "train.py", *map(str, argv)]
    return subprocess.Popen(
        command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert start(folder) == 0
    return folder


# --- a run directory has one owner ---------------------------------------------------------------


def test_runs_started_at_once_have_directories_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(run.time, "strftime", lambda _: "now")
    argv = [*TINY, "--steps", "100", "--runs", str(tmp_path)]
    for lr in (0.1, 0.2, 0.3):
        assert train.main([*argv, "--lr", str(lr)]) == 0
    folders = sorted(tmp_path.iterdir())
    assert [folder.name.removeprefix("two_step_qmix_s1_") for folder in folders] == [
        "now", "now_2", "now_3",
    ]  # fmt: skip
    configs = [json.loads((folder / "config.json").read_text()) for folder in folders]
    assert [config["flags"]["lr"] for config in configs] == [0.1, 0.2, 0.3]


@pytest.mark.skipif(run.fcntl is None, reason="no locks on this system")
def test_a_directory_that_is_trained_in_is_refused(tmp_path):
    folder = tmp_path / "run"
    first = script(*TINY, "--run-dir", folder, "--steps", 10**9, "--test-interval", 10**9)
    try:
        while not (folder / "metrics.csv").exists():
            assert first.poll() is None, first.stderr.read()
        for argv in (["--resume", folder], [*TINY, "--run-dir", folder]):
            second = script(*argv)
            out, err = second.communicate(timeout=60)
            assert second.returncode == 2 and out == "" and err.count("\n") == 1
            assert "another process trains in" in err
    finally:
        first.kill()
        first.wait()
    assert resume(folder, "--steps", "200") == 0, "the lock went with its process"


# --- output that nobody can read -----------------------------------------------------------------


def test_a_closed_or_full_stdout_ends_talking_not_training(tmp_path):
    for number, target in enumerate(["| head -1", "> /dev/full"]):
        folder = tmp_path / str(number)
        command = f"{sys.executable} train.py {' '.join(TINY)} --run-dir {folder} {target}"
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command], cwd=HERE, capture_output=True, text=True
        )
        assert done.returncode == 0 and done.stderr == ""
        assert int(metrics(folder)[-1]["t_env"]) == 600


def test_letters_that_the_terminal_does_not_know(tmp_path, whole):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    folder = tmp_path / "Läufe-試"
    process = script(*TINY, "--run-dir", folder, env=environment)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == "" and "L?ufe-?" in out
    assert same_run(whole, folder)
    command = [sys.executable, "-m", "extras.plot", str(folder), "--out", str(tmp_path / "ä")]
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and (tmp_path / "ä.png").exists()


# --- signals, threads ----------------------------------------------------------------------------


@contextlib.contextmanager
def handled(number, handler):
    """A signal goes to `handler`, and afterwards to whom it went before."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_a_dropped_connection_and_slurms_warning_stop_it_in_good_order(
    whole, tmp_path, monkeypatch, name
):
    number = getattr(signal, name)
    with monkeypatch.context() as patch, handled(number, signal.SIG_DFL):  # not as under nohup
        stop_at(patch, 60, number)
        assert start(tmp_path / "run") == 128 + number
    assert resume(tmp_path / "run") == 0 and same_run(whole, tmp_path / "run")


def test_nohup_lets_it_run_on(whole, tmp_path, monkeypatch):
    stop_at(monkeypatch, 60, signal.SIGHUP)
    with handled(signal.SIGHUP, signal.SIG_IGN):
        assert start(tmp_path / "run") == 0 and same_run(whole, tmp_path / "run")


def test_a_run_in_another_thread(whole, tmp_path):
    status = []
    worker = threading.Thread(target=lambda: status.append(start(tmp_path / "run")))
    worker.start()
    worker.join()
    assert status == [0] and same_run(whole, tmp_path / "run")


def test_threads_bound_everything(tmp_path):
    code = """
import sys, numba, torch, train
from starcraft import simulator
step = simulator.BattleSim.step
def spying(self, actions):
    global kernel
    kernel = self._kernel.__name__
    return step(self, actions)
simulator.BattleSim.step = spying
train.main(sys.argv[1:])
print(kernel, numba.get_num_threads(), torch.get_num_threads())
"""
    found = []
    for threads in (1, 2):
        argv = f"--env sim --map 8m --n-envs 64 --steps 64 --threads {threads} --runs {tmp_path}"
        done = subprocess.run(
            [sys.executable, "-c", code, *argv.split()], cwd=HERE, capture_output=True, text=True
        )
        found.append(done.stdout.splitlines()[-1].split())
    assert found[0] == ["run_in_turn", "1", "1"]
    if machine.cores() > 1:
        assert found[1] == ["run_at_once", "2", "1"]


# --- what a container allows ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "cores", "memory"),
    [
        ({"cpu.max": "150000 100000", "memory.max": "9000", "memory.current": "5000",
          "memory.stat": "anon 1\ninactive_file 300"}, 2, 4300),
        ({"cpu.max": "max 100000", "memory.max": "max", "memory.current": "5000"}, 8, 7000 * 1024),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000",
          "memory/memory.limit_in_bytes": "900", "memory/memory.usage_in_bytes": "400"}, 1, 500),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8, 7000 * 1024),
        ({}, 8, 7000 * 1024),
    ],
)  # fmt: skip
def test_a_containers_limits_are_seen(tmp_path, monkeypatch, system, cores, memory):
    system = {f"sys/fs/cgroup/{name}": text for name, text in system.items()}
    for name, text in (system | {"proc/meminfo": "MemAvailable:   7000 kB"}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / path.lstrip("/"))
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert machine.cores() == cores and machine.available_memory() == memory
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert machine.cores() == 1


# --- where numba keeps what it has compiled ------------------------------------------------------

SHOW_FOLDER = "from starcraft import compiled; print(compiled.numba.config.CACHE_DIR)"


def cache_folder(room, **environment):
    done = subprocess.run(
        [sys.executable, "-c", SHOW_FOLDER],
        cwd=room, env=os.environ | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return Path(done.stdout.strip())


def test_changed_rules_are_compiled_anew_in_any_folder(tmp_path):
    shutil.copytree(HERE / "starcraft", tmp_path / "starcraft")
    own, mine = cache_folder(tmp_path, NUMBA_CACHE_DIR=""), tmp_path / "mine"
    assert own.parent == tmp_path / "starcraft" / "__pycache__"
    before = cache_folder(tmp_path, NUMBA_CACHE_DIR=str(mine))
    assert before.parent == mine and before.name == own.name
    assert cache_folder(tmp_path, NUMBA_CACHE_DIR=str(before)) == before, "of a process below it"
    for name in ("battle.py", "maps.py", "interface.py", "simulator.py", "a_new_file.py"):
        with open(tmp_path / "starcraft" / name, "a") as file:
            file.write("# changed\n")
        after = cache_folder(tmp_path, NUMBA_CACHE_DIR=str(mine))
        assert after.parent == mine and after != before
        before = after


def test_folders_that_cannot_be_written_to_cost_time_and_nothing_else(tmp_path):
    """A file stands where each folder would be: that stops the superuser too."""
    shutil.copytree(
        HERE / "starcraft", tmp_path / "starcraft", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "starcraft" / "__pycache__").write_text("")
    (tmp_path / "file").write_text("")
    nowhere = str(tmp_path / "file" / "cache")
    places = {"NUMBA_CACHE_DIR": nowhere, "XDG_CACHE_HOME": nowhere}
    folder = cache_folder(tmp_path, **places)
    assert folder.name.startswith("qmix-numba-") and not folder.exists(), "gone with its process"


# --- files that were damaged or edited -----------------------------------------------------------


def test_plot_leaves_out_what_it_cannot_read(whole, tmp_path, capsys, monkeypatch):
    (tmp_path / "other").mkdir()
    plot.main([str(whole), str(tmp_path / "other"), "--out", str(tmp_path / "curves")])
    out, err = capsys.readouterr()
    assert "two_step" in out and err.count("\n") == 1 and "other is not a run directory" in err


def test_a_damaged_table_does_not_stop_a_sound_checkpoint(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 120)
        start(tmp_path / "run")
    (tmp_path / "run" / "metrics.csv").write_bytes(b"\xff\xfe")
    assert resume(tmp_path / "run") == 0 and same_run(whole, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"surprise": 3}, "config.json has 'surprise', no flag of this version"),
        ({"help": True}, "config.json has 'help', no flag of this version"),
        ({"seed": float("inf")}, "config.json is damaged"),
        ({"hidden_dim": -1}, "--hidden-dim: -1 is not a whole number"),
        ({"hidden_dim": "8 "}, ""),
        ({"n_envs": 7}, "must be finite numbers"),
        ({"env_args": [1]}, "config.json is damaged"),
        ({"mixer": "nobody"}, "invalid choice: 'nobody'"),
        (None, "config.json is damaged"),
    ],
)
def test_edited_config(tmp_path, capsys, monkeypatch, change, words):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 120)
        start(folder)
    config = json.loads((folder / "config.json").read_text())
    config["flags"] |= change or {}
    text = json.dumps(config) if change else "[" * 200_000
    (folder / "config.json").write_text(text)
    capsys.readouterr()
    if not words:  # a text that reads as the number it was
        assert resume(folder) == 0
        return
    with pytest.raises(SystemExit) as stopped:
        resume(folder)
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and words in err and err.count("\n") == 1


def leaves(state, path=()):
    """Paths of everything inside dictionaries and lists."""
    items = state.items() if isinstance(state, dict) else enumerate(state)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from leaves(value, (*path, key))


WRONG = [10**12, -1, -(2**63), 2**63 - 1, 1e300, float("nan"), "x", None, True, [], {}, 5]


def spoil(state, rng):
    """Change one random thing in a checkpoint. Returns what was done."""
    part = rng.choice(list(state))  # each part as often, however many weights there are
    inside = state[part] if isinstance(state[part], dict | list) else {}
    path = (part, *rng.choice([(), *leaves(inside)]))
    parent = state
    for key in path[:-1]:
        parent = parent[key]
    value, kind = parent[path[-1]], rng.randrange(4)
    if kind == 0 and isinstance(parent, dict):
        del parent[path[-1]]
        return path, "deleted"
    if isinstance(value, torch.Tensor) and value.numel() and kind < 3:
        flat = value.contiguous().view(-1).clone()
        if flat.dtype == torch.uint8 and flat.numel() >= 8 and kind == 1:  # a number in a record
            at = 8 * rng.randrange(flat.numel() // 8)
            number = rng.choice([10**12, -1, -(2**63), 2**63 - 1, 31])
            flat[at : at + 8] = torch.frombuffer(
                bytearray(np.int64(number).tobytes()), dtype=torch.uint8
            )
        else:
            with contextlib.suppress(RuntimeError, OverflowError, TypeError, ValueError):
                flat[rng.randrange(flat.numel())] = rng.choice(WRONG[:6])
        parent[path[-1]] = flat.view(value.shape)
        return path, "a number"
    if isinstance(value, torch.Tensor) and kind == 3:
        parent[path[-1]] = rng.choice([value[:0], value.double(), value.unsqueeze(0), value.t()]
                                      if value.dim() == 2 else [value.unsqueeze(0)])  # fmt: skip
        return path, "a shape"
    parent[path[-1]] = rng.choice(WRONG)
    return path, repr(parent[path[-1]])


@pytest.mark.parametrize(("game", "times"), [("sim", 100), ("two_step", 200)])
def test_no_edited_checkpoint_crashes_anything(tmp_path, monkeypatch, capsys, game, times):
    """Either refused in one line with status 2, or, where what was changed is possible (the number
    of episodes, a weight), the run goes on."""
    game_argv = "--env sim --map 3m --steps 900 --test-interval 300 --batch-size 4 --threads 1"
    game_argv += " --n-envs 4 --buffer-size 30 --test-episodes 2 --hidden-dim 8"
    argv = game_argv.split() if game == "sim" else TINY
    folder = tmp_path / "run"
    cls = BattleSim if game == "sim" else envs.TwoStepGame
    with monkeypatch.context() as patch:
        stop_at(patch, 150, signal.SIGTERM, cls)
        assert train.main([*argv, "--run-dir", str(folder)]) == 128 + 15
    for path in folder.glob("checkpoint.prev.pt"):
        path.unlink()
    data, refused, rng = (folder / "checkpoint.pt").read_bytes(), 0, random.Random(0)
    config = (folder / "config.json").read_bytes()
    pieces = {path: path.read_bytes() for path in (folder / "buffer").iterdir()}
    for _ in range(times):
        state = torch.load(io.BytesIO(data), weights_only=True)
        done = spoil(state, rng)
        torch.save(state, folder / "checkpoint.pt")
        (folder / "config.json").write_bytes(config)
        for path, content in pieces.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        capsys.readouterr()
        with monkeypatch.context() as patch:
            stop_at(patch, 5, signal.SIGTERM, cls)
            try:
                status = resume(folder, "--steps", "1000")
            except SystemExit as stopped:
                err = capsys.readouterr().err
                assert stopped.code == 2 and err.count("\n") == 1, (done, err)
                refused += 1
            else:
                assert status in (0, 1, 128 + 15), done
        (folder / "checkpoint.prev.pt").unlink(missing_ok=True)
    assert refused > times / 2


def test_a_weight_that_is_no_number_is_refused(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_at(patch, 120)
        start(tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.pt"
    state = files.load(path)
    state["learner"]["agent"]["fc1.bias"][3] = float("nan")
    torch.save(state, path)
    with pytest.raises(SystemExit):
        resume(tmp_path / "run")
    assert "learner, agent, fc1.bias must be finite numbers" in capsys.readouterr().err


def test_edited_pieces_of_replay(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_at(patch, 120)
        start(tmp_path / "run")
    piece = next((tmp_path / "run" / "buffer").iterdir())
    original = files.load(piece)
    for name, index, value in (
        ("obs_bits", 0, 0), ("obs_bits", 0, 255), ("obs", 0, float("nan")), ("actions", 0, 99),
        ("lengths", 0, 10**6), ("reward", 0, float("nan")), ("terminated", 0, True),
    ):  # fmt: skip
        arrays = {key: x.clone() for key, x in original.items()}
        arrays[name].view(-1)[index] = value
        torch.save(arrays, piece)
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        capsys.readouterr()
        assert resume(tmp_path / "copy") == 0
        assert "replay buffer starts empty" in capsys.readouterr().out, name
        shutil.rmtree(tmp_path / "copy")
