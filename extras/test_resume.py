"""Tests of stopping and resuming: exactness, kills, damage, full disks, divergence.

QMIX (https://arxiv.org/abs/1803.11485). Run them with: python -m pytest extras/test_resume.py
"""

import contextlib
import copy
import errno
import json
import multiprocessing
import os
import signal
import sys
import time
import types

import numpy as np
import pytest
import torch

import envs
import train
from buffer import ReplayBuffer
from extras import files, run
from extras.check import check_running
from extras.files import BufferFiles
from extras.test_run import equal, learner_state, resume, same_run, truncate
from learner import QLearner
from starcraft.sc2 import GameUnavailable
from test_qmix import (
    SIZES,
    metrics,
    no_waiting_for_the_disk,  # noqa: F401 a fixture that all tests here use
    play,
    start,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert start(folder) == 0
    return folder


def stop_at(monkeypatch, step, number=signal.SIGTERM, cls=envs.TwoStepGame):
    """Send this process a signal at the given call of cls.step, test episodes included."""
    calls, original = [], cls.step

    def counting(self, actions):
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), number)
        return original(self, actions)

    monkeypatch.setattr(cls, "step", counting)
    return calls


@pytest.mark.parametrize("stops", [(1,), (3, 40), (60, 61, 5), (9, 150)])
def test_stopped_and_resumed_equals_never_stopped(whole, tmp_path, monkeypatch, capsys, stops):
    """Steps 1 and 3 lie in the test at t_env 0."""
    for i, step in enumerate(stops):
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            assert (resume(tmp_path / "run") if i else start(tmp_path / "run")) == 128 + 15
        assert f"--resume {tmp_path / 'run'}" in capsys.readouterr().out
        metrics(tmp_path / "run")
    assert resume(tmp_path / "run") == 0
    assert same_run(whole, tmp_path / "run")


def test_resume_on_the_simulator_is_exact(tmp_path, monkeypatch):
    from starcraft.simulator import BattleSim

    argv = "--env sim --map 3m --steps 3000 --test-interval 1000 --batch-size 8 --threads 1"
    argv = [*argv.split(), "--n-envs", "8", "--buffer-size", "30", "--test-episodes", "8"]
    assert train.main([*argv, "--run-dir", str(tmp_path / "whole")]) == 0
    for step, work in ((10, [*argv, "--run-dir"]), (270, ["--resume"])):  # the 10th: in a test
        with monkeypatch.context() as patch:
            stop_at(patch, step, signal.SIGINT, BattleSim)
            assert train.main([*work, str(tmp_path / "run")]) == 128 + 2
    assert resume(tmp_path / "run") == 0
    assert int(metrics(tmp_path / "run")[-1]["updates"]) > 20
    assert same_run(tmp_path / "whole", tmp_path / "run")


def test_whatever_has_a_state_is_resumed(whole, tmp_path, monkeypatch, capsys):
    """A part of the learner, and an environment, that keep plain numbers and texts."""

    class Counter:
        def __init__(self):
            self.state = {"count": 0.5, "name": "so far"}

        def state_dict(self):
            return dict(self.state)

        def load_state_dict(self, state):
            self.state = dict(state)

    original, game = QLearner.__init__, envs.TwoStepGame.state_dict
    learners, parts = [], QLearner.parts

    def begin(self, *args, **options):
        original(self, *args, **options)
        self.counter = Counter()
        learners.append(self)

    def count(self):
        self.counter.state["count"] += 1
        return parts(self) | {"counter": self.counter}

    monkeypatch.setattr(QLearner, "__init__", begin)
    monkeypatch.setattr(QLearner, "parts", count)
    monkeypatch.setattr(envs.TwoStepGame, "state_dict", lambda self: game(self) | {"about": "two"})
    with monkeypatch.context() as patch:
        stop_at(patch, 60)
        assert start(tmp_path / "run") == 128 + 15
    assert resume(tmp_path / "run") == 0
    first, second = (learner.counter.state["count"] for learner in learners)
    assert second > first > 1 and metrics(whole) == metrics(tmp_path / "run")


def test_an_environment_that_cannot_be_saved_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.delattr(envs.TwoStepGame, "state_dict")
    with monkeypatch.context() as patch:
        stop_at(patch, 60)
        start(tmp_path / "run")
    assert resume(tmp_path / "run") == 0
    assert "no exact continuation" in capsys.readouterr().out


def test_other_code_and_new_flags_are_told(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_at(patch, 60)
        start(tmp_path / "run")
    config = files.read_config(tmp_path / "run")
    config["versions"]["git"] = "0123456789"
    del config["flags"]["gamma"]
    files.write_config(tmp_path / "run", config)
    monkeypatch.setattr(files, "versions", lambda: {"git": None})  # git is not installed
    assert files.with_this_code(copy.deepcopy(config)) == config
    today = {"git": "abcdefghij", "git_uncommitted": False}
    monkeypatch.setattr(files, "versions", lambda: today)
    capsys.readouterr()
    assert resume(tmp_path / "run") == 0
    err = capsys.readouterr().err
    assert "so by default: gamma 0.99\n" in err
    assert "with revision 0123456, goes on with abcdefg\n" in err
    versions = files.read_config(tmp_path / "run")["versions"]
    assert versions["git"] == "0123456789" and versions["git_last"] == "abcdefghij"

    config["versions"]["git"] = "abcdefghij"
    assert files.with_this_code(copy.deepcopy(config)) == config
    assert not capsys.readouterr().err
    today["git_uncommitted"] = True
    assert files.with_this_code(config)["versions"]["git_last_uncommitted"]
    assert "goes on with abcdefg with uncommitted changes\n" in capsys.readouterr().err
    today |= {"git": "zyxwvutsrq", "git_uncommitted": False}
    for revision in ("zyxwvutsrq", "abcdefghij"):  # another one, and back
        today["git"] = revision
        assert files.with_this_code(config)["versions"]["git_last"] == revision


def test_signal_handlers_are_put_back(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert start(tmp_path / "run") == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def kill_and_resume(folder, seconds):
    """Start a run, kill it so many seconds after it wrote its config.json, resume it, kill it
    again, ... Returns how many of them were still running when they were killed."""
    context = multiprocessing.get_context("forkserver")  # clean children that have torch loaded
    context.set_forkserver_preload(["extras.test_resume"])
    config, running = folder / "config.json", 0
    for wait in seconds:
        work, argv = (resume, ()) if config.exists() else (start, ("--test-interval", "20"))
        written = config.stat().st_mtime_ns if config.exists() else 0
        child = context.Process(target=quietly, args=(work, folder, *argv))
        child.start()
        while child.is_alive() and not (config.exists() and config.stat().st_mtime_ns > written):
            time.sleep(0.001)
        time.sleep(wait)
        running += child.is_alive()
        child.kill()
        child.join()
        if (folder / "metrics.csv").exists():
            metrics(folder)
    return running


def quietly(work, folder, *argv):
    with open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        os._exit(work(folder, *argv))


@pytest.fixture(scope="module")
def often_tested(tmp_path_factory):
    folder = tmp_path_factory.mktemp("often") / "run"
    start(folder, "--test-interval", "20")
    return folder


def finish(folder, reference):
    with contextlib.suppress(SystemExit):  # if it had got to its end before the kill
        assert resume(folder) == 0
    assert same_run(reference, folder)


def test_kill_9(tmp_path, often_tested):
    assert kill_and_resume(tmp_path / "run", [0.0, 0.05, 0.2]) > 0
    finish(tmp_path / "run", often_tested)


def test_killed_before_its_first_checkpoint(tmp_path, often_tested, monkeypatch):
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(run, "save_checkpoint", interrupt)
        start(tmp_path / "run", "--test-interval", "20")
    assert not list((tmp_path / "run").glob("checkpoint*"))
    finish(tmp_path / "run", often_tested)


def test_killed_before_its_first_checkpoint_it_begins_with_the_other_runs_weights_again(
    whole, tmp_path, monkeypatch
):
    argv = ("--init-from", str(whole), "--steps", "4", "--test-interval", "1000")
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(run, "save_checkpoint", interrupt)
        start(tmp_path / "run", *argv)
    assert resume(tmp_path / "run") == 0
    assert equal(learner_state(tmp_path / "run")["agent"], learner_state(whole)["average"])


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_twenty_kills(tmp_path, often_tested):
    rng, running = np.random.default_rng(), 0
    for attempt in range(5):
        waits = rng.uniform(0, 0.4, 4)
        print("waits", waits)
        running += kill_and_resume(tmp_path / str(attempt), waits)
        finish(tmp_path / str(attempt), often_tested)
    assert running >= 10


@pytest.mark.parametrize("victim", ["checkpoint.new.pt", "metrics.csv", "buffer"])
def test_killed_in_the_middle_of_a_write(whole, tmp_path, monkeypatch, victim):
    """Every rename that a kill could come before, at the fourth test."""

    class Killed(BaseException):
        pass

    original, seen = os.replace, []

    def replace(source, target):
        if victim in str(target):
            seen.append(1)
            if len(seen) == 5:
                raise Killed
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", replace)
        with pytest.raises(Killed):
            start(tmp_path / "run")
    (tmp_path / "run" / "metrics.csv.tmp").write_text("t_env,epi")  # what a kill would leave
    assert resume(tmp_path / "run") == 0
    assert same_run(whole, tmp_path / "run")


def test_killed_between_the_two_renames_of_a_checkpoint(whole, tmp_path, monkeypatch):
    stop_at(monkeypatch, 90)
    start(tmp_path / "run")
    monkeypatch.undo()
    old, new = ((tmp_path / "run" / f"checkpoint.{name}.pt") for name in ("prev", "new"))
    (tmp_path / "run" / "checkpoint.pt").rename(new)
    old.write_text("no checkpoint: had it been wanted, this would have begun anew")
    assert resume(tmp_path / "run") == 0
    assert same_run(whole, tmp_path / "run") and not new.exists()


def test_a_resumed_run_keeps_its_game(tmp_path, capsys):
    """--env-args add to those of the run; only where StarCraft II is played may change."""
    flags = {"map": "3m", "mixer": "qmix", "seed": 1, "n_envs": 2}
    flags |= {"env_args": [["reward_sparse", True], ["ray", "a"]]}
    config = {"flags": flags, "env": {"name": "sc2", "map": "3m"}, "versions": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = ["--resume", str(tmp_path), "--env-args", "timeout=30", "ray=b"]
    args, _ = train.parse_args(words)
    assert dict(args.env_args) == {"reward_sparse": True, "ray": "b", "timeout": 30}
    capsys.readouterr()
    for wrong in ("reward_sparse=False", "reward_win=0"):
        with pytest.raises(SystemExit):
            train.parse_args([*words, wrong])
        said = f"--env-args {wrong.partition('=')[0]} cannot change with --resume"
        assert said in capsys.readouterr().err
    words[0] = "--evaluate"
    assert dict(train.parse_args([*words, wrong])[0].env_args)["reward_win"] == 0


def stopped_run(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 120)
        start(tmp_path / "run")
    return tmp_path / "run"


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4  # in a tensor: torch.load alone would not notice
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty])
def test_damaged_checkpoint(whole, tmp_path, monkeypatch, capsys, damage):
    folder = stopped_run(tmp_path, monkeypatch)
    damage(folder / "checkpoint.pt")
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        resume(folder)
    assert "checkpoint.pt is damaged" in capsys.readouterr().out
    for name in ("checkpoint.pt", "checkpoint.prev.pt"):
        files.load(folder / name)  # the damaged one is gone
    assert resume(folder) == 0
    assert same_run(whole, folder)


def test_the_checkpoint_before_keeps_its_replay(tmp_path, monkeypatch, capsys):
    """With so small a buffer no episode of one test is left at the next."""
    start(tmp_path / "whole", "--buffer-size", "8")
    with monkeypatch.context() as patch:
        stop_at(patch, 120)
        start(tmp_path / "run", "--buffer-size", "8")
    truncate(tmp_path / "run" / "checkpoint.pt")
    assert resume(tmp_path / "run") == 0
    assert "buffer starts empty" not in capsys.readouterr().out
    assert same_run(tmp_path / "whole", tmp_path / "run")


def test_damaged_replay_is_said_and_survived(tmp_path, monkeypatch, capsys):
    folder = stopped_run(tmp_path, monkeypatch)
    truncate(max((folder / "buffer").iterdir(), key=lambda path: int(path.stem)))
    pieces = {path: path.read_bytes() for path in (folder / "buffer").iterdir()}
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        resume(folder)
    assert "replay buffer starts empty" in capsys.readouterr().out
    kept = files.load(folder / "checkpoint.pt")["buffer"]["pieces"]
    assert sum(len(files.load(folder / "buffer" / f"{n}.pt")["lengths"]) for n in kept) < 5
    for path, data in pieces.items():  # the checkpoint before relies on them
        assert not path.exists() or path.read_bytes() == data
    assert resume(folder) == 0
    assert "replay buffer starts empty" not in capsys.readouterr().out
    assert int(metrics(folder)[-1]["t_env"]) == 600


def test_replay_on_disk(whole, tmp_path, monkeypatch, capsys):
    assert not (whole / "buffer").exists(), "auto: gone when the run is done"
    # A rate that falls until --steps would show the prolonging.
    constant = ("--lr", "0.001", "--lr-finish", "0.001")
    with monkeypatch.context() as patch:
        patch.setattr(files, "MAX_PIECES", 3)  # so that pieces are merged, too
        start(tmp_path / "yes", "--save-buffer", "yes", "--steps", "500", *constant)
    assert 1 <= len(list((tmp_path / "yes" / "buffer").iterdir())) <= 6
    assert resume(tmp_path / "yes", "--steps", "600") == 0
    start(tmp_path / "at once", *constant)
    assert same_run(tmp_path / "at once", tmp_path / "yes")
    folder = stopped_run(tmp_path, monkeypatch)
    assert resume(folder, "--save-buffer", "no") == 0
    start(tmp_path / "no", "--save-buffer", "no", "--steps", "300")
    assert not (tmp_path / "no" / "buffer").exists()
    assert resume(tmp_path / "no", "--steps", "600") == 0
    assert "no exact continuation: it was not saved" in capsys.readouterr().out


def test_replay_on_a_disk_that_it_has_filled_itself(whole, tmp_path, monkeypatch):
    """What it holds there is room for it; somebody's notes beside it are left alone."""
    folder = stopped_run(tmp_path, monkeypatch)
    notes = folder / "buffer" / "notes.pt"
    notes.write_text("mine")
    held = sum(path.stat().st_size for path in notes.parent.glob("[0-9]*.pt"))
    room = types.SimpleNamespace(free=files.read_config(folder)["buffer_bytes_when_full"] - held)
    with monkeypatch.context() as patch:
        patch.setattr(run.shutil, "disk_usage", lambda _: room)
        stop_at(patch, 40)
        assert resume(folder) == 128 + 15
    assert any(notes.parent.glob("[0-9]*.pt"))
    assert resume(folder) == 0
    assert same_run(whole, folder) and list(notes.parent.iterdir()) == [notes]


@pytest.mark.parametrize("torch_hides_it", [False, True])
@pytest.mark.parametrize("which", [6, 7])
def test_disk_full(whole, tmp_path, monkeypatch, capsys, which, torch_hides_it):
    """The write of the fourth checkpoint fails; the third stays, and is resumed from."""
    calls, save = [], torch.save

    def failing(state, file):
        calls.extend([1] * ("best" not in file.name))
        if len(calls) == which:  # two files for each but the first: replay, then the rest
            file.write(b"half a checkpo")
            full = OSError(errno.ENOSPC, "No space left on device")
            if not torch_hides_it:
                raise full
            try:
                raise full
            except OSError:
                raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904 as torch does it
        save(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(files.torch, "save", failing)
        assert start(tmp_path / "run") == 1
    err = capsys.readouterr().err
    assert "No space left on device" in err and len(err.splitlines()) == 1
    assert not list((tmp_path / "run").glob("*.tmp"))
    assert files.load(tmp_path / "run" / "checkpoint.pt")["progress"]["t_env"] == 200
    assert resume(tmp_path / "run") == 0
    assert same_run(whole, tmp_path / "run")


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_not_finite_stops_the_run(tmp_path, monkeypatch, capsys, name):
    calls, update = [], train.QLearner.update

    def broken(self, batch):
        calls.append(1)
        bad = {name: torch.tensor(torch.nan)} if len(calls) == 30 else {}
        return update(self, batch) | bad

    monkeypatch.setattr(train.QLearner, "update", broken)
    assert start(tmp_path / "run") == 1
    err = capsys.readouterr().err
    assert f"{name} nan" in err and len(err.splitlines()) == 1
    assert files.load(tmp_path / "run" / "checkpoint.pt")["progress"]["t_env"] == 200
    assert resume(tmp_path / "run", "--lr", "0.0001") == 0


def test_game_that_is_gone_saves_the_run(tmp_path, monkeypatch, capsys):
    stop_at(monkeypatch, 90)
    step, calls = envs.TwoStepGame.step, []

    def gone(self, actions):
        calls.append(1)
        if len(calls) == 80:
            raise GameUnavailable("StarCraft II failed 5 times in a row")
        return step(self, actions)

    monkeypatch.setattr(envs.TwoStepGame, "step", gone)
    assert start(tmp_path / "run") == 1
    assert "failed 5 times in a row" in capsys.readouterr().err
    assert resume(tmp_path / "run") == 128 + 15


def test_a_restored_buffer_goes_on_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_PIECES", 3)
    first, closed, pieces = ReplayBuffer(20, 2, 7, **SIZES), 0, []
    on_disk = BufferFiles(tmp_path, first)
    for steps in (3, 40, 9, 9, 9, 9, 9, 9, 14):
        first.drop(np.array([True, True]))
        closed += len(play(first, steps))
        saved = on_disk.save(closed)
        on_disk.clean()
        pieces.append(len(saved["pieces"]))
        second = ReplayBuffer(20, 2, 7, **SIZES)
        restored = BufferFiles(tmp_path, second)
        restored.load(saved)
        assert len(first) == len(second) and first.held == second.held
        for one, other in zip(first.episodes, second.episodes, strict=True):
            np.testing.assert_equal(one, other)
        assert restored.save(closed)["pieces"] == saved["pieces"], "nothing new, nothing written"
    assert len(first) == 20 < closed and pieces[:6] == [0, 1, 2, 3, 1, 2]  # more than 3 are merged
    assert first.steps.all(), "both environments should be in the middle of a game"
    ended = np.ones((1, 2), bool)
    for buffer in (first, second):
        last = np.arange(7) == buffer.steps[:, None] - 1  # (E, L) not the end that play meant
        buffer.running["terminated"][:, :7] |= last & ended.T
        buffer.close(ended[0], np.ones((2, 2, 3)), np.ones((2, 2)), np.ones((2, 2, 3)))
    one, other = (buffer.sample(20, np.random.default_rng(0)) for buffer in (first, second))
    assert one.sizes == other.sizes and all(map(torch.equal, one[:-1], other[:-1]))
    saved = files.to_tensors(saved)
    check_running(saved, second, "it")
    with pytest.raises(ValueError, match=r"it, steps must be .* of shape \(3,\)"):
        check_running(saved, ReplayBuffer(20, 3, 7, **SIZES), "it")


def test_a_piece_is_kept_as_long_as_one_of_its_episodes(tmp_path):
    buffer = ReplayBuffer(5, 2, 7, **SIZES)
    on_disk = BufferFiles(tmp_path, buffer)
    source = ReplayBuffer(20, 2, 7, **SIZES)
    play(source, 60)
    for closed, episode in enumerate(source.episodes, start=1):
        buffer.append(episode)
        saved = on_disk.save(closed)
        on_disk.clean()
        restored = ReplayBuffer(5, 2, 7, **SIZES)
        BufferFiles(tmp_path, restored).load(saved)
        assert saved["pieces"] == list(range(max(closed - 4, 1), closed + 1))
        for one, other in zip(buffer.episodes, restored.episodes, strict=True):
            np.testing.assert_equal(one, other)


@pytest.mark.parametrize("write", ["whole", "fails"])
def test_a_file_is_flushed_to_the_disk_before_it_gets_its_name(tmp_path, monkeypatch, write):
    path, done = tmp_path / "file", []
    path.write_bytes(b"old")
    replace = os.replace
    monkeypatch.setattr(files.os, "fsync", lambda number: done.append(os.fstat(number).st_size))
    monkeypatch.setattr(files.os, "replace", lambda *names: (done.append("name"), replace(*names)))

    def new(file):
        file.write(b"new and longer")
        if write == "fails":
            raise OSError(errno.ENOSPC, "No space left on device")

    if write == "fails":
        with pytest.raises(OSError, match="No space"):
            files.write_atomic(path, new)
        assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path] and not done
        return
    files.write_atomic(path, new)
    assert done[:2] == [len(b"new and longer"), "name"] and len(done) == 3  # then the folder
    assert path.read_bytes() == b"new and longer"
