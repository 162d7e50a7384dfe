"""The real game behind the vector contract: games in worker processes, and what is missing here.

SMAC: https://arxiv.org/abs/1902.04043. The worker's side is in worker.py.

Shapes: E games, N agents, A actions, O observation, S state.
"""

import contextlib
import importlib.metadata
import importlib.util
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from . import Step
from .machine import available_memory, cores

# --- is it there? ------------------------------------------------------------------

SMAC = "pip install --no-deps git+https://github.com/oxwhirl/smac.git@d6aab33"
PACKAGES = "pip install -r starcraft/requirements.txt"
GAME = (
    "wget http://blzdistsc2-a.akamaihd.net/Linux/SC2.4.10.zip && "
    "unzip -P iagreetotheeula SC2.4.10.zip -d ~ && export SC2PATH=~/StarCraftII"
)
MAPS = (
    "wget https://github.com/oxwhirl/smac/releases/download/v0.1-beta1/SMAC_Maps.zip && "
    'unzip SMAC_Maps.zip -d "{}/Maps"'
)


def sc2_problem(map_name):
    """The first thing that keeps StarCraft II from being played here, with the command that mends
    it, in one line; None if there is none. Starts nothing."""
    if os.name != "posix":
        return "its worker processes need Linux or macOS; use --env sim"
    smac = importlib.util.find_spec("smac")
    if smac is None or smac.origin is None:  # origin None: just a folder of that name
        return f"SMAC is not installed; {PACKAGES} && {SMAC}"
    if not Path(smac.origin).with_name("env").joinpath("starcraft2").is_dir():
        return (
            "the installed package smac is SMAC3, another project of that name; "
            f"pip uninstall -y smac && {PACKAGES} && {SMAC}"
        )
    try:
        import s2clientprotocol.sc2api_pb2  # noqa: F401
    except ModuleNotFoundError as error:
        return f"the package {error.name} is not installed; {PACKAGES}"
    except Exception:  # TypeError or ImportError, depending on the version
        version = importlib.metadata.version("protobuf")
        return f"protobuf {version} cannot read the game's messages; pip install protobuf==3.20.3"
    if importlib.util.find_spec("pysc2") is None:
        return f"the package pysc2 is not installed; {PACKAGES}"

    usual = "/Applications/StarCraft II" if sys.platform == "darwin" else "~/StarCraftII"
    folder = Path(os.environ.get("SC2PATH", usual)).expanduser()
    if not any(folder.glob("Versions/Base*/SC2*")):
        unset = "" if "SC2PATH" in os.environ else "SC2PATH is not set and "
        return (
            f"{unset}{folder} holds no game (no Versions/Base*/SC2*); export SC2PATH=..., or {GAME}"
        )
    maps = sorted(path.stem for path in folder.glob("Maps/SMAC_Maps/*.SC2Map"))
    if not maps:
        return f"SMAC's maps are not in {folder}/Maps/SMAC_Maps; {MAPS.format(folder)}"
    if map_name not in maps:
        return f"no map {map_name!r} in {folder}/Maps/SMAC_Maps; choose from {', '.join(maps)}"
    return None


def default_n_games():
    """One game per core, if there is 1 GB of free memory for each, and 2 GB for all the rest."""
    return max(1, int(min(cores(), available_memory() / 1e9 - 2)))


# --- the trainer's side ------------------------------------------------------------

WORKER = Path(__file__).with_name("worker.py")
TRIES = 5  # starts in a row, of one game, that come to nothing, until the run is given up
PROVEN = 20  # steps after which a start has come to something
BACKOFF = 1.0  # seconds before the second try; doubles with each further one
START_PATIENCE = 4  # a game may take so many times `timeout` to start


class GameUnavailable(RuntimeError):  # noqa: N818
    """StarCraft II does not start, or breaks at once, time after time. The message is one line."""


class Game:
    """One worker process and the StarCraft II process below it, seen from the trainer.

    They form a process group of their own: Ctrl-C in the terminal does not reach them, and one kill
    ends both. They are never mended: what goes wrong ends both, and a new pair begins.
    """

    def __init__(self):
        self.process = None
        self.starts = self.failures = 0  # failures: starts in a row that came to nothing
        self.playing = False  # an episode that can be stepped

    def start(self, job, delay, patience):
        """A new worker, which waits `delay` seconds and then starts the game."""
        # A game that is killed leaves its temporary files behind: here, where kill() removes them
        self.folder = tempfile.TemporaryDirectory(prefix="qmix-sc2-", ignore_cleanup_errors=True)
        self.pipe, theirs = multiprocessing.Pipe()
        # multiprocessing.Process would repeat the imports of train.py, torch too, in each worker
        self.process = subprocess.Popen(
            [sys.executable, WORKER, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            env={**os.environ, "TMPDIR": self.folder.name},
            **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL),
        )
        theirs.close()
        self.starts += 1
        self.steps, self.playing, self.first, self.deadline = 0, False, None, None
        self.ask(sys.path, 0)  # to find the class in `job`
        self.ask((delay, patience, job), delay + patience)

    def ask(self, request, patience):
        """Send a request, to be answered within `patience` seconds."""
        self.expect(patience)
        with contextlib.suppress(OSError):  # it has died; reading its answer will tell
            self.pipe.send(request)

    def expect(self, patience):
        """An answer must come within `patience` seconds."""
        self.deadline = time.monotonic() + patience

    def kill(self):
        """End both processes, if they run."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None
        self.pipe.close()
        self.folder.cleanup()


def check_timeout(timeout):
    """Raises ValueError, one line, for what is no number of seconds."""
    if not (isinstance(timeout, int | float) and 0 < timeout <= 86_400):
        raise ValueError(f"timeout must be more than 0 seconds, 86400 at most, not {timeout}")


def make_arrays(env):
    """Give env, whose sizes are known, the arrays of the vector contract, and its Step."""
    E, N, A = env.n_envs, env.n_agents, env.n_actions
    env.obs = np.zeros((E, N, env.obs_dim), np.float32)
    env.state = np.zeros((E, env.state_dim), np.float32)
    env.avail_actions = np.zeros((E, N, A), bool)
    env._step = Step(np.zeros(E, np.float32), *(np.zeros(E, bool) for _ in range(4)))


def check(actions, avail_actions, playing):
    """Raises ValueError, one line, where actions (E, N) are no integers or not available, or where
    an episode cannot be stepped: playing (E,)."""
    E, N, A = avail_actions.shape
    if actions.shape != (E, N) or actions.dtype.kind not in "iu":
        raise ValueError(
            f"actions must be integers of shape {(E, N)}, not {actions.dtype} of shape"
            f" {actions.shape}"
        )
    if not playing.all():
        raise ValueError(
            f"the episode of environment {playing.argmin()} is over: reset it before the next step"
        )
    known = (actions >= 0) & (actions < A)
    chosen = np.where(known, actions, 0)[..., None]  # (E, N, 1)
    legal = known & np.take_along_axis(avail_actions, chosen, axis=2)[..., 0]  # (E, N)
    if not legal.all():
        i, agent = np.argwhere(~legal)[0]
        raise ValueError(
            f"environment {i}: agent {agent} cannot perform action {actions[i, agent]} "
            f"(available: {np.flatnonzero(avail_actions[i, agent]).tolist()})"
        )


class SMACWorkers:
    """E games of smac.env.StarCraft2Env on the vector contract, one worker process for each game.

    Whatever breaks a game (a crash, a protocol error, an exception, an answer overdue) ends its
    episode as `aborted`, reward 0, and restarts worker and game with another seed, at once and in
    the background; reset() of that environment waits for it. smac itself would only start another
    StarCraft II, and then go on with stale units and a max_reward, so rewards, that are wrong.

    Args:
        n_envs: games side by side; None: what cores and memory allow.
        timeout: seconds; a game that answers no request for so long is restarted.
        make_game: makes, in the worker, from map_name and seed, what has StarCraft2Env's methods
            (for tests, or a variant of SMAC); must be picklable. None: smac's own.
        stride: between the seeds of a game's first and second start, and so on; None: n_envs.

    Raises:
        GameUnavailable: here, in step and in reset, when a game failed TRIES times in a row within
            PROVEN steps of its start.
        ValueError: in step, for actions that are not available, or after the end of an episode.
    """

    name = "sc2"
    tests_play_here = True  # games are too large to open more of them for tests

    def __init__(self, map_name, n_envs=None, seed=0, timeout=60.0, make_game=None, stride=None):
        check_timeout(timeout)
        if n_envs is None:
            n_envs = default_n_games()
        if not (isinstance(n_envs, int) and n_envs > 0):
            raise ValueError(f"n_envs must be a whole number of games, 1 or more, not {n_envs}")
        self.map_name, self.n_envs, self.seed, self.timeout = map_name, n_envs, seed, timeout
        self.make_game, self.stride = make_game, stride or n_envs
        self.restarts, self.last_fault = 0, ""
        self.unfinished = False  # a step that Ctrl-C has ended, in a notebook, where this goes on
        self.games = [Game() for _ in range(n_envs)]
        try:
            for i in range(n_envs):
                self._start(i)
            self._await_first(range(n_envs))
        except BaseException:
            self.close()
            raise
        info, self.version = self.games[0].about
        self.n_agents, self.n_actions = info["n_agents"], info["n_actions"]
        self.obs_dim, self.state_dim = info["obs_shape"], info["state_shape"]
        self.episode_limit = info["episode_limit"]
        make_arrays(self)
        self.reset()

    def reset(self, mask=None):
        """Begin new episodes where mask (E,) is True, None: all. Waits for games that restart."""
        who = np.flatnonzero(np.ones(self.n_envs, bool) if mask is None else mask)
        if self.unfinished:  # else answers that nobody has read are taken for others
            for i in range(self.n_envs):
                self._restart(i, "Ctrl-C during a step")
            self.unfinished = False
        for i in who:
            if self.games[i].first is None and self.games[i].deadline is None:
                self.games[i].ask(("reset",), self.timeout)
        self._await_first(who)
        for i in who:
            self._show(i, self.games[i].first)
            self.games[i].first, self.games[i].playing = None, True

    def step(self, actions):
        """One step in all games at once: send everything, then gather the answers as they come.
        actions: (E, N) integers. Returns a Step, whose arrays the next step overwrites."""
        actions = np.asarray(actions)
        playing = [game.playing and not self.unfinished for game in self.games]
        check(actions, self.avail_actions, np.array(playing))
        self.unfinished = True
        for game, row in zip(self.games, actions.tolist(), strict=True):
            game.ask(("step", row), self.timeout)
        reward, terminated, truncated, battle_won, aborted = self._step
        for array in self._step[:-1]:
            array[:] = 0
        aborted[:] = True
        for i, (result, seen) in self._answers(range(self.n_envs)):
            reward[i], terminated[i], truncated[i], battle_won[i] = result
            aborted[i] = False
            self._show(i, seen)
            self.games[i].steps += 1
            self.games[i].playing = not (terminated[i] or truncated[i])
            if not self.games[i].playing:  # its worker has begun the next episode unasked
                self.games[i].expect(self.timeout)
        self.obs[aborted], self.state[aborted] = 0, 0
        self.avail_actions[aborted] = True  # no row may be empty
        self.unfinished = False
        return self._step

    def save_replay(self, folder):
        """Write a .SC2Replay per game, of all episodes since its start. Returns their paths."""
        folder = Path(folder).resolve()
        folder.mkdir(parents=True, exist_ok=True)  # here: pysc2 fails if two do it at once
        everybody = range(self.n_envs)
        self._await_first([i for i in everybody if self.games[i].deadline is not None])
        for i in everybody:
            request = "save_replay", str(folder), f"{self.map_name}_game{i}"
            self.games[i].ask(request, self.timeout)
        return [path for _, path in self._answers(everybody)]

    def close(self):
        """End all processes. If it is never called they end by themselves, with the trainer."""
        for game in self.games:
            game.kill()

    def _show(self, i, seen):
        self.obs[i], self.state[i], self.avail_actions[i] = seen

    def _await_first(self, who):
        """Until every game in `who` has the first observation of an episode, restarts included."""
        while who := [i for i in who if self.games[i].first is None]:
            for i, (about, seen) in self._answers(who):
                self.games[i].about = about or self.games[i].about
                self.games[i].first = seen

    def _answers(self, who):
        """Yield (i, answer) for the games in `who`, all of which were asked something, as they
        come: the work on one is done while the others play. What breaks is restarted, left out."""
        waiting = {self.games[i].pipe.fileno(): i for i in who}
        ready = select.poll()
        for pipe in waiting:
            ready.register(pipe, select.POLLIN)
        while waiting:
            left = min(self.games[i].deadline for i in waiting.values()) - time.monotonic()
            for pipe, _ in ready.poll(max(left, 0) * 1000):
                ready.unregister(pipe)
                i, fault = waiting.pop(pipe), "its worker process was killed"
                with contextlib.suppress(EOFError, OSError):
                    fault, answer = self.games[i].pipe.recv()
                if fault:
                    self._restart(i, fault)
                else:
                    self.games[i].deadline = None
                    yield i, answer
            now = time.monotonic()
            for pipe in [pipe for pipe, i in waiting.items() if self.games[i].deadline < now]:
                ready.unregister(pipe)
                self._restart(waiting.pop(pipe), "no answer in time")

    def _restart(self, i, fault):
        game = self.games[i]
        game.kill()
        self.restarts, self.last_fault = self.restarts + 1, f"game {i}: {fault}"
        game.failures = 0 if game.steps >= PROVEN else game.failures + 1
        if game.failures >= TRIES:
            raise GameUnavailable(
                f"StarCraft II failed {TRIES} times in a row within {PROVEN} steps of its start; "
                f"the last time, {self.last_fault}"
            )
        self._start(i, BACKOFF * 2 ** (game.failures - 1) if game.failures else 0.0)

    def _start(self, i, delay=0.0):
        seed = self.seed + i + self.stride * self.games[i].starts  # no seed twice
        patience = START_PATIENCE * self.timeout
        self.games[i].start((self.map_name, seed, self.make_game), delay, patience)
