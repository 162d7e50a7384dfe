"""StarCraft II behind the vector contract: worker processes, what breaks them, what is left behind.

QMIX (https://arxiv.org/abs/1803.11485). The games are the simulator's drop-in class, told when to
break. The tests named `smac` play the real package and run only where SMAC and StarCraft II (or a
stand-in for its binary, SC2PATH=...) are installed.

    python -m pytest starcraft/test_sc2.py
"""

import importlib.util
import math
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from . import sc2
from .sc2 import GameUnavailable, SMACWorkers, sc2_problem
from .simulator import StarCraft2Env, random_actions
from .worker import open_smac

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the game's protocol, which is older than protobuf
    PROBLEM = sc2_problem("3m")
needs_smac = pytest.mark.skipif(PROBLEM is not None, reason=f"real SMAC: {PROBLEM}")


class FaultyGame(StarCraft2Env):
    """The simulator's drop-in with a process below it, as smac has StarCraft II, and with faults.

    The first `times` games that reach call number `at` of the method `on` break there, as `fault`
    says. folder: keeps the count, and what the tests want to know: seeds and process ids.
    """

    def __init__(self, map_name, seed, folder, fault=None, on="step", at=1, times=1):
        self.folder, self.fault, self.on, self.at, self.times = folder, fault, on, at, times
        self.calls = {"start": 0, "step": 0, "reset": 0}
        self.note("seed", seed)
        self.note("pid", os.getpid())
        self.note("pid", subprocess.Popen(["sleep", "600"]).pid)
        self.stale = False
        self.maybe_break("start")
        super().__init__(map_name, seed=seed, continuing_episode=True)

    def note(self, name, value):
        with open(Path(self.folder) / name, "a") as file:
            file.write(f"{value}\n")

    def take_fault(self):
        """Whether one of `times` faults is left, over all processes."""
        for k in range(self.times):
            try:
                os.close(os.open(Path(self.folder) / f"fault{k}", os.O_CREAT | os.O_EXCL))
                return True
            except FileExistsError:
                pass
        return False

    def maybe_break(self, call):
        self.calls[call] += 1
        if call != self.on or self.calls[call] != self.at or not self.fault:
            return None
        if not self.take_fault():
            return None
        if self.fault == "exception":
            raise ConnectionError("the game\nhas gone")
        if self.fault == "dies":
            os._exit(3)
        if self.fault == "hangs":
            time.sleep(600)
        if self.fault == "slow":
            time.sleep(1.5)
        return self.fault

    def reset(self):
        self.stale = self.maybe_break("reset") == "stale"
        return super().reset()

    def step(self, actions):
        fault = self.maybe_break("step")
        if fault == "empty info":
            return 0, True, {}
        reward, over, info = super().step(actions)
        if fault == "limit":
            info["episode_limit"] = True
        return reward, over or fault in ("limit", "defeat"), info

    def get_avail_actions(self):
        rows = super().get_avail_actions()
        return [[1] + [0] * (len(row) - 1) for row in rows] if self.stale else rows


def noted(folder, name):
    path = Path(folder) / name
    return path.read_text().split("\n")[:-1] if path.exists() else []


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids, seconds=10):
    end = time.monotonic() + seconds
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    return left


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """workers(n_envs, timeout=..., **faults) -> SMACWorkers; all must be gone at the end."""
    monkeypatch.setattr(sc2, "BACKOFF", 0.05)
    monkeypatch.setattr(sc2, "TRIES", 3)
    made = []

    def make(n_envs=2, timeout=20.0, **faults):
        made.append(
            SMACWorkers("3m", n_envs, 7, timeout, partial(FaultyGame, folder=tmp_path, **faults))
        )
        return made[-1]

    make.folder = tmp_path
    yield make
    for env in made:
        env.close()
        assert not any(Path(game.folder.name).exists() for game in env.games)
    assert not wait_until_gone(noted(tmp_path, "pid"), 2)


def interrupted(*_):
    raise KeyboardInterrupt


def play(env, steps, rng):
    """Random play; returns the finished episodes (environment, return, length) and, copied, the
    Steps with an abort."""
    totals, lengths, episodes, aborts = np.zeros(env.n_envs), np.zeros(env.n_envs, int), [], []
    for _ in range(steps):
        step = env.step(random_actions(env.avail_actions, rng))
        totals, lengths = totals + step.reward, lengths + 1
        ended, over = (
            step.terminated | step.truncated,
            step.terminated | step.truncated | step.aborted,
        )
        assert not (ended & step.aborted).any()
        episodes += [(i, totals[i], lengths[i]) for i in np.flatnonzero(ended)]
        if step.aborted.any():
            aborts.append(tuple(array.copy() for array in step))
            assert not env.obs[step.aborted].any() and not env.state[step.aborted].any()
        assert env.avail_actions.any(-1).all()
        if over.any():
            env.reset(over)
            totals[over], lengths[over] = 0, 0
            assert not env.avail_actions[over][..., 0].any()  # a new episode has no dead
    return episodes, aborts


def play_beside(env, games, steps, stop=False):
    """Asserts that env shows and answers what the games do that play the same, step by step, in at
    least three episodes. stop: all who may stop do so."""
    rng, ends = np.random.default_rng(0), 0
    for _ in range(steps):
        for i, game in enumerate(games):
            np.testing.assert_array_equal(env.obs[i], game.get_obs())
            np.testing.assert_array_equal(env.state[i], game.get_state())
            np.testing.assert_array_equal(env.avail_actions[i], game.get_avail_actions())
        actions = random_actions(env.avail_actions, rng)
        if stop:
            actions[:, :] = np.where(env.avail_actions[..., 1], 1, actions)
        step, over = env.step(actions), np.zeros(len(games), bool)
        for i, game in enumerate(games):
            reward, over[i], info = game.step(actions[i])
            limit = info.get("episode_limit", False)
            expected = np.float32(reward), over[i] and not limit, limit, info["battle_won"], False
            assert tuple(array[i] for array in step) == expected
            if over[i]:
                game.reset()
        ends += over.sum()
        env.reset(over)
    assert ends > 2


def test_workers_show_what_the_game_shows(workers):
    env = workers(2)
    games = [StarCraft2Env("3m", seed=7 + i, continuing_episode=True) for i in range(2)]
    for game in games:
        game.reset()
    assert (env.n_envs, env.n_agents, env.n_actions, env.obs_dim, env.state_dim) == (
        2,
        3,
        9,
        30,
        48,
    )
    assert env.episode_limit == 60 and env.name == "sc2"
    assert (env.obs.dtype, env.state.dtype, env.avail_actions.dtype) == (
        np.float32,
        np.float32,
        bool,
    )
    play_beside(env, games, 150, stop=True)  # it stops wherever it may: runs into the limit


@pytest.mark.parametrize("fault", ["limit", "defeat"])
def test_time_limit_is_truncated_not_terminated(workers, fault):
    env = workers(1, fault=fault, at=3)
    for t in (1, 2, 3):
        step = env.step(env.avail_actions.argmax(-1))
        assert step.truncated[0] == (t == 3 and fault == "limit")
        assert step.terminated[0] == (t == 3 and fault == "defeat")
    assert env.obs.any() and not step.aborted[0]


@pytest.mark.parametrize("fault", ["exception", "empty info", "dies", "hangs"])
def test_broken_game_aborts_its_episode_and_no_other(workers, fault):
    env = workers(2, timeout=2.0 if fault == "hangs" else 20.0, fault=fault, at=30, times=1)
    first = [game.process.pid for game in env.games]
    episodes, aborts = play(env, 100, np.random.default_rng(1))
    assert len(aborts) == env.restarts == 1
    reward, terminated, truncated, battle_won, aborted = aborts[0]
    assert aborted.sum() == 1
    assert not (reward[aborted].any() or (terminated | truncated | battle_won)[aborted].any())
    broken = int(aborted.argmax())
    assert env.games[1 - broken].process.pid == first[1 - broken]
    assert env.games[broken].process.pid != first[broken]
    assert {i for i, _, _ in episodes} == {0, 1}
    assert all(0 <= total <= 20 for _, total, _ in episodes)
    assert env.last_fault.startswith(f"game {broken}: ") and "\n" not in env.last_fault
    seeds = noted(workers.folder, "seed")
    assert len(seeds) == len(set(seeds)) == 3 and set(seeds[:2]) == {"7", "8"}


@pytest.mark.parametrize("fault", [None, "defeat"])
def test_an_interrupted_step_leaves_no_answer_for_the_next(workers, monkeypatch, fault):
    """Ctrl-C in a notebook; defeat: in the last step of an episode, too."""
    env = workers(2, fault=fault)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(env, "_show", interrupted)
        env.step(env.avail_actions.argmax(-1))
    with pytest.raises(ValueError, match="of environment 0 is over: reset"):
        env.step(env.avail_actions.argmax(-1))
    env.reset()
    assert env.restarts == 2 and "Ctrl-C" in env.last_fault
    games = [StarCraft2Env("3m", seed=7 + i + 2, continuing_episode=True) for i in range(2)]
    for game in games:
        game.reset()
    play_beside(env, games, 100)


def test_every_game_may_break_again_and_again(workers):
    env = workers(1, fault="dies", at=25, times=100)  # at least PROVEN: never the end of the run
    _, aborts = play(env, 4 * 25, np.random.default_rng(2))
    assert len(aborts) == env.restarts == 4 > sc2.TRIES


@pytest.mark.parametrize("fault", ["exception", "hangs", "stale"])
def test_fault_in_reset_costs_no_episode(workers, fault):
    env = workers(1, timeout=2.0, fault=fault, on="reset", at=3, times=1)
    episodes, aborts = play(env, 120, np.random.default_rng(3))
    assert not aborts and env.restarts == 1 and len(episodes) >= 3


def test_slow_start_is_waited_for(workers):
    env = workers(1, timeout=1.0, fault="slow", on="start")  # 1.5 s, patience 4 x 1 s
    assert env.restarts == 0
    play(env, 5, np.random.default_rng(0))


@pytest.mark.parametrize("fault", ["exception", "dies", "hangs"])
def test_failed_starts_are_tried_again(workers, fault, monkeypatch):
    monkeypatch.setattr(sc2, "START_PATIENCE", 3.0)
    times = 1 if fault == "hangs" else 2
    env = workers(1, timeout=1.0, fault=fault, on="start", times=times)
    assert env.restarts == times == len(noted(workers.folder, "seed")) - 1
    play(env, 5, np.random.default_rng(0))


@pytest.mark.parametrize("on", ["start", "reset", "step"])
def test_hopeless_game_ends_in_one_line(workers, on):
    with pytest.raises(
        GameUnavailable, match=r"failed 3 times in a row.*ConnectionError: the game$"
    ) as error:
        play(workers(1, fault="exception", on=on, times=100), 50, np.random.default_rng(0))
    assert "\n" not in str(error.value)
    assert not wait_until_gone(noted(workers.folder, "pid"), 2) or on == "step"


def test_backoff_doubles(workers, monkeypatch):
    monkeypatch.setattr(sc2, "TRIES", 4)
    delays, start = [], sc2.Game.start

    def spy(self, job, delay, patience):
        delays.append(delay)
        start(self, job, delay, patience)

    monkeypatch.setattr(sc2.Game, "start", spy)
    workers(1, fault="exception", on="start", times=3)
    assert delays == pytest.approx([0, 0.05, 0.1, 0.2])


def test_actions_are_checked_before_they_are_sent(workers):
    env = workers(2)
    legal = env.avail_actions.argmax(-1)
    for bad, message in (
        (legal[:1], r"shape \(2, 3\)"),
        (legal.astype(float), "integers"),
        (np.where(np.arange(3) == 1, 0, legal), "environment 0: agent 1 cannot perform action 0"),
        (
            np.where(np.arange(2)[:, None] == 1, 9, legal),
            "environment 1: agent 0 cannot perform action 9",
        ),
        (legal * 0 - 1, "action -1"),
    ):
        with pytest.raises(ValueError, match=message):
            env.step(bad)
    for _ in range(70):
        step = env.step(env.avail_actions.argmax(-1))
        if (step.terminated | step.truncated).any():
            break
    with pytest.raises(ValueError, match="is over: reset it"):
        env.step(env.avail_actions.argmax(-1))
    assert env.restarts == 0


TRAINER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is born deaf to it
from functools import partial
from starcraft.sc2 import SMACWorkers
from starcraft.test_sc2 import FaultyGame
game = partial(FaultyGame, folder=sys.argv[1], fault=sys.argv[2], at=3)
env = SMACWorkers("3m", 2, 1, 60.0, game)
print("ready", flush=True)
try:
    while True:
        env.step(env.avail_actions.argmax(-1))
        time.sleep(0.02)
except ValueError:
    time.sleep(600)
"""


@pytest.mark.parametrize(
    "ending, fault",
    [
        (signal.SIGKILL, "none"),
        (signal.SIGKILL, "hangs"),
        (signal.SIGTERM, "none"),
        (signal.SIGINT, "none"),
    ],
)
def test_nothing_outlives_the_trainer(tmp_path, ending, fault):
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(tmp_path), fault],
        cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    assert trainer.stdout.readline() == b"ready\n"
    time.sleep(0.3)  # some steps further
    pids = noted(tmp_path, "pid")
    assert len(pids) == 4 and all(map(alive, pids))  # two workers, a process below each
    os.killpg(trainer.pid, ending)
    trainer.wait(10)
    assert not wait_until_gone(pids)


# --- what is missing, and what to do about it ----------------------------------------------------


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder with just enough of every package and of the game to content sc2_problem."""
    for path in (
        "smac/env/starcraft2/__init__.py",
        "pysc2/__init__.py",
        "s2clientprotocol/__init__.py",
    ):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    (tmp_path / "smac/__init__.py").touch()
    (tmp_path / "s2clientprotocol/sc2api_pb2.py").touch()
    (tmp_path / "game/Versions/Base75689").mkdir(parents=True)
    (tmp_path / "game/Versions/Base75689/SC2_x64").touch()
    (tmp_path / "game/Maps/SMAC_Maps").mkdir(parents=True)
    (tmp_path / "game/Maps/SMAC_Maps/3m.SC2Map").touch()
    for name in list(sys.modules):
        if name.split(".")[0] in ("smac", "pysc2", "s2clientprotocol"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SC2PATH", str(tmp_path / "game"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert sc2_problem("3m") is None
    for name in ("s2clientprotocol", "s2clientprotocol.sc2api_pb2"):
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def hide(monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == package else find(name, *more),
    )


PB2 = "s2clientprotocol/sc2api_pb2.py"
MISSING = {  # what is wrong: (what is said about it, how the folder is spoilt)
    "no smac": (r"SMAC is not installed; pip install -r starcraft/requirements.txt && pip", None),
    "SMAC3": (r"is SMAC3", lambda f: (f / "smac/env/starcraft2").rename(f / "gone")),
    "no pysc2": (r"pysc2 is not installed; pip install -r starcraft/requirements.txt", None),
    "no protocol": (
        r"nosuchmodule is not installed; pip install -r",
        lambda f: (f / PB2).write_text("import nosuchmodule"),
    ),
    "protobuf": (
        r"protobuf 7.0 cannot read the game's messages; pip install protobuf==3.20.3",
        lambda f: (f / PB2).write_text("raise TypeError"),
    ),
    "no Versions": (r"holds no game", lambda f: (f / "game/Versions").rename(f / "gone")),
    "no SC2PATH": (r"SC2PATH is not set and .*/StarCraftII holds no game .*; export SC2PATH", None),
    "no maps": (
        r"maps are not in .*; wget .*SMAC_Maps.zip",
        lambda f: (f / "game/Maps").rename(f / "gone"),
    ),
    "unknown map": (r"no map '4m' in .*; choose from 3m", None),
}


@pytest.mark.parametrize("what", MISSING)
def test_preflight_names_what_is_missing(installed, monkeypatch, what):
    message, spoil = MISSING[what]
    if spoil:
        spoil(installed)
    if what == "no SC2PATH":
        monkeypatch.delenv("SC2PATH")
    if what in ("no smac", "no pysc2"):
        hide(monkeypatch, what.removeprefix("no "))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "7.0")
    importlib.invalidate_caches()
    map_name = "4m" if what == "unknown map" else "3m"
    problem = sc2_problem(map_name)
    assert re.search(message, problem) and "\n" not in problem


def test_a_time_that_is_none_is_refused():
    for timeout in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="more than 0 seconds"):
            SMACWorkers("3m", 1, timeout=timeout)


@pytest.mark.parametrize("n_envs", [0, -1, 2.5])
def test_a_number_of_games_that_is_none_is_refused(n_envs):
    with pytest.raises(ValueError, match="n_envs must be a whole number of games, 1 or more"):
        SMACWorkers("3m", n_envs)


def test_default_number_of_games_fits_the_machine():
    assert 1 <= sc2.default_n_games() <= os.cpu_count()


# --- the real package ----------------------------------------------------------------------------


@pytest.fixture
def stand_in():
    """Skips unless the game is the stand-in, whose faults can be ordered."""
    binary = next(Path(os.environ.get("SC2PATH", "")).glob("Versions/Base*/SC2_x64"), None)
    if binary is None or b"fake_sc2" not in binary.read_bytes()[:4096]:
        pytest.skip("needs the stand-in for StarCraft II in SC2PATH")


@needs_smac
def test_smac_plays_and_saves_replays(tmp_path):
    env = SMACWorkers("3m", 2, 1)
    assert env.version.startswith("StarCraft II 4.")
    episodes, aborts = play(env, 80, np.random.default_rng(0))
    assert len(episodes) >= 2 and not aborts
    assert all(0 <= total <= 20.01 for _, total, _ in episodes)
    paths = env.save_replay(tmp_path / "replays")
    assert len(set(paths)) == 2
    assert all(Path(path).stat().st_size and path.endswith(".SC2Replay") for path in paths)
    env.close()


@needs_smac
def test_smac_faults(stand_in, monkeypatch):
    for name, value in {
        "CRASH_AFTER": 45,
        "ALLY_DAMAGE": 10,
        "LATE_UNITS": 5,
        "LATE_WHO": "ally",
    }.items():
        monkeypatch.setenv(f"FAKE_SC2_{name}", str(value))
    env = SMACWorkers("3m", 2, 1)
    episodes, aborts = play(env, 150, np.random.default_rng(0))
    assert 4 <= sum(aborted.sum() for *_, aborted in aborts) <= env.restarts  # some in a reset
    assert max(total for _, total, _ in episodes) == pytest.approx(
        20, abs=1e-4
    )  # won: all of max_reward
    env.close()


@needs_smac
@pytest.mark.parametrize("who", ["enemy", "ally"])
def test_smac_counts_max_reward_once(stand_in, monkeypatch, who):
    monkeypatch.setenv("FAKE_SC2_LATE_UNITS", "4")
    monkeypatch.setenv("FAKE_SC2_LATE_WHO", who)
    game, _ = open_smac("3m", 1, 60)
    pids = []
    for _ in range(3):  # reset before the end of the first episode: the same process goes on
        assert game.max_reward == 3 * 10 + 200 + 3 * 45
        pids.append(game._sc2_proc.pid)
        game.reset()
    assert len(set(pids)) == 1
    game.close()


@needs_smac
def test_smac_fault_is_not_hidden(stand_in, monkeypatch):
    monkeypatch.setenv("FAKE_SC2_CRASH_AFTER", "3")
    game, _ = open_smac("3m", 1, 60)
    with pytest.raises(RuntimeError, match="StarCraft II crashed"):  # not (0, True, {}) and go on
        for _ in range(3):
            game.step([1, 1, 1])
    assert game.force_restarts == 0
    game.close()
