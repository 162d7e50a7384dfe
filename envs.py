"""The environments of QMIX (https://arxiv.org/abs/1803.11485) behind one vector contract.

    env = make_env("auto", "2s3z", n_envs=8, seed=1)      # "sim" | "sc2" | "auto" | "two_step"

E environments run side by side with N agents, A actions, O numbers per observation, S per state:

    env.n_envs, env.n_agents, env.n_actions, env.obs_dim, env.state_dim, env.episode_limit
    env.obs            (E, N, O) float32   what each agent sees now
    env.state          (E, S)    float32   what only the mixer sees
    env.avail_actions  (E, N, A) bool      every row has at least one True
    env.reset(mask=None)                   begin new episodes where mask (E,) is True; None: all
    env.step(actions)  (E, N) int64 ->     Step(reward (E,) float32; terminated, truncated,
                                                battle_won, aborted, each (E,) bool)
    env.close()
    env.state_dict(), env.load_state_dict(saved)    optional; without them tests interrupt running
                                                    episodes, and --resume does not go on exactly
    env.name, env.version                  what is really being played, for config.json

- Nothing resets itself: after a step the arrays hold the last observation of a finished episode;
  store it, then call reset(mask). Nobody waits for the longest battle.
- `terminated` (the task ended) and `truncated` (time ran out) are different facts.
- `aborted`: the game died or hung. Throw that episode away and reset; its arrays show nothing.
- The arrays and the fields of Step are overwritten by the next step or reset: copy what you keep.
- Environment i is seeded with seed + i.

Your own environment: write a class with these names (TwoStepGame is the shortest), add its name to
ENVS and return it from make_env.
"""

import contextlib
import importlib.metadata
import importlib.util
import multiprocessing.connection
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

if __name__ != "__main__":  # a game's own process (see play_game) starts sooner without numba
    from simulator import Step

ENVS = ("auto", "sim", "sc2", "two_step")
SIM_BATTLES = 32  # side by side, unless told otherwise


def make_env(env="auto", map_name="2s3z", n_envs=None, seed=0, sc2_timeout=60.0):
    """The vector environment `env`; "auto": StarCraft II where it is installed, else the simulator.

    Args:
        n_envs: how many run side by side; None: SIM_BATTLES, or default_n_games() of StarCraft II.
        sc2_timeout: seconds; a game that answers no request for so long is restarted.

    Raises:
        ValueError: what cannot be had, and how to have it, in one line.
        GameUnavailable: everything is installed, yet StarCraft II does not start.
    """
    if env not in ENVS:
        raise ValueError(f"unknown environment {env!r}: choose from {', '.join(ENVS)}")
    if n_envs is not None and n_envs < 1:
        raise ValueError(f"n_envs must be at least 1, not {n_envs}")
    if not sc2_timeout > 0:
        raise ValueError(f"sc2_timeout must be more than 0 seconds, not {sc2_timeout}")
    if env in ("auto", "sc2"):
        problem = sc2_problem(map_name)
        if problem is None:
            return SMACWorkers(map_name, n_envs or default_n_games(), seed, sc2_timeout)
        if env == "sc2":
            raise ValueError(f"StarCraft II cannot be played here: {problem}")
    if env == "two_step":
        return TwoStepGame(n_envs or SIM_BATTLES, seed)
    from simulator import BattleSim

    sim = BattleSim(map_name, n_envs or SIM_BATTLES, seed)
    if env == "auto":
        print(f"Playing the simulator, not StarCraft II: {problem}", file=sys.stderr)
    return sim


class TwoStepGame:
    """The paper's two-step matrix game (section 5): two agents, two actions, two steps.

    In state 1 the first agent's action leads to 2A (action 0) or 2B (action 1), reward 0. State 2A
    pays 7 whatever they do; 2B pays [[0, 1], [1, 8]]. Both agents, and the mixer, see which of the
    three states they are in as a one-hot vector. The best return is 8, the safe one 7.
    """

    name, version = "two_step", "paper"
    n_agents, n_actions, obs_dim, state_dim, episode_limit = 2, 2, 3, 3, 2
    PAYOFF = np.array([[[0, 0], [0, 0]], [[7, 7], [7, 7]], [[0, 1], [1, 8]]], np.float32)

    def __init__(self, n_envs=1, seed=0):
        del seed  # nothing here is random
        self.n_envs = n_envs
        self.where = np.zeros(n_envs, np.int64)  # (E,) 0: state 1, 1: state 2A, 2: state 2B
        self.avail_actions = np.ones((n_envs, 2, 2), bool)
        self._observe()

    def _observe(self):
        self.state = np.eye(3, dtype=np.float32)[self.where]  # (E, S)
        self.obs = np.repeat(self.state[:, None], 2, axis=1)  # (E, N, O)

    def reset(self, mask=None):
        self.where[slice(None) if mask is None else mask] = 0
        self._observe()

    def step(self, actions):
        first, second = np.asarray(actions).T  # (E,) each
        reward = self.PAYOFF[self.where, first, second]
        terminated = self.where > 0
        self.where = np.where(terminated, self.where, 1 + first)
        self._observe()
        never = np.zeros(self.n_envs, bool)
        return Step(reward, terminated, never, terminated & (reward == 8), never)

    def state_dict(self):
        return {"where": self.where.copy()}

    def load_state_dict(self, saved):
        self.where[:] = saved["where"]
        self._observe()

    def close(self):
        pass


# --- StarCraft II: is it there? ------------------------------------------------------------------

SMAC = "pip install --no-deps git+https://github.com/oxwhirl/smac.git@d6aab33"
PACKAGES = "pip install -r requirements-smac.txt"
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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9  # macOS: all there is
    if Path("/proc/meminfo").exists():
        lines = Path("/proc/meminfo").read_text().splitlines()
        memory = next(int(row.split()[1]) / 1e6 for row in lines if row.startswith("MemAvailable"))
    return max(1, min(cores, int(memory - 2)))


# --- StarCraft II: the trainer's side ------------------------------------------------------------

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
            [sys.executable, __file__, str(theirs.fileno())],
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


class SMACWorkers:
    """E games of smac.env.StarCraft2Env on the vector contract, one worker process for each game.

    Whatever breaks a game (a crash, a protocol error, an exception, an answer overdue) ends its
    episode as `aborted`, reward 0, and restarts worker and game with another seed, at once and in
    the background; reset() of that environment waits for it. smac itself would only start another
    StarCraft II, and then go on with stale units and a max_reward, so rewards, that are wrong.

    Args:
        timeout: seconds; see make_env.
        make_game: makes, in the worker, from map_name and seed, what has StarCraft2Env's methods
            (for tests, or a variant of SMAC); must be picklable. None: smac's own.

    Raises:
        GameUnavailable: here, in step and in reset, when a game failed TRIES times in a row within
            PROVEN steps of its start.
        ValueError: in step, for actions that are not available, or after the end of an episode.
    """

    name = "sc2"

    def __init__(self, map_name, n_envs, seed=0, timeout=60.0, make_game=None):
        self.map_name, self.n_envs, self.seed, self.timeout = map_name, n_envs, seed, timeout
        self.make_game = make_game
        self.restarts, self.last_fault = 0, ""
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
        E, N, A = n_envs, self.n_agents, self.n_actions
        self.obs = np.zeros((E, N, self.obs_dim), np.float32)
        self.state = np.zeros((E, self.state_dim), np.float32)
        self.avail_actions = np.zeros((E, N, A), bool)
        self._step = Step(np.zeros(E, np.float32), *(np.zeros(E, bool) for _ in range(4)))
        self.reset()

    def reset(self, mask=None):
        """Begin new episodes where mask (E,) is True, None: all. Waits for games that restart."""
        who = np.flatnonzero(np.ones(self.n_envs, bool) if mask is None else mask)
        for i in who:
            if self.games[i].first is None and self.games[i].deadline is None:
                self.games[i].ask(("reset",), self.timeout)
        self._await_first(who)
        for i in who:
            self._show(i, self.games[i].first)
            self.games[i].first, self.games[i].playing = None, True

    def step(self, actions):
        """One step in all games at once: send everything, then gather the answers as they come."""
        actions = np.asarray(actions)
        self._check(actions)
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

    def _check(self, actions):
        if actions.shape != (self.n_envs, self.n_agents) or actions.dtype.kind not in "iu":
            raise ValueError(
                f"actions must be integers of shape {(self.n_envs, self.n_agents)}, "
                f"not {actions.dtype} of shape {actions.shape}"
            )
        for i, game in enumerate(self.games):
            if not game.playing:
                raise ValueError(
                    f"the episode of environment {i} is over: reset it before the next step"
                )
        A = self.n_actions
        known = (actions >= 0) & (actions < A)
        chosen = np.where(known, actions, 0)[..., None]  # (E, N, 1)
        legal = known & np.take_along_axis(self.avail_actions, chosen, axis=2)[..., 0]  # (E, N)
        if not legal.all():
            i, agent = np.argwhere(~legal)[0]
            raise ValueError(
                f"environment {i}: agent {agent} cannot perform action {actions[i, agent]} "
                f"(available: {np.flatnonzero(self.avail_actions[i, agent]).tolist()})"
            )

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
        seed = self.seed + i + self.n_envs * self.games[i].starts  # no seed twice
        patience = START_PATIENCE * self.timeout
        self.games[i].start((self.map_name, seed, self.make_game), delay, patience)


# --- StarCraft II: the worker's side -------------------------------------------------------------


def play_game(pipe_fd):
    """What a worker process does: start a game, then reset, step and save replays as it is told.

    Answers (None, answer), or (what went wrong, None), after which it ends itself and the game.
    """
    pipe = multiprocessing.connection.Connection(pipe_fd)
    threading.Thread(target=die_with_trainer, args=(pipe_fd,), daemon=True).start()
    try:
        sys.path[:] = pipe.recv()
        delay, patience, (map_name, seed, make_game) = pipe.recv()
        time.sleep(delay)
        if make_game is None:
            game, version = open_smac(map_name, seed, patience)
        else:
            game, version = make_game(map_name=map_name, seed=seed), "made for a test"
            game.reset()
        pipe.send((None, ((game.get_env_info(), version), first_sight(game))))
        while True:
            request, *arguments = pipe.recv()
            if request == "step":
                reward, over, info = game.step(*arguments)
                if not info:
                    raise RuntimeError("StarCraft II had to be restarted")
                limit = bool(info.get("episode_limit", False))
                result = (reward, over and not limit, limit, info["battle_won"])
                pipe.send((None, (result, sight(game))))
                if over:
                    request = "reset"  # now, while the other games still play this step
            if request == "reset":
                game.reset()
                pipe.send((None, (None, first_sight(game))))
            if request == "save_replay":
                game.replay_dir, game.replay_prefix = arguments
                game.save_replay()
                files = Path(game.replay_dir).glob(game.replay_prefix + "_*")
                pipe.send((None, str(max(files, key=os.path.getmtime))))
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
        with contextlib.suppress(OSError):
            pipe.send((reason, None))
    os.killpg(0, signal.SIGKILL)


def die_with_trainer(pipe_fd):
    """Wait, in a thread, until the trainer is gone, however it went, and end this process group."""
    hangup = select.poll()
    hangup.register(pipe_fd, 0)  # 0: wake for nothing but a hang-up
    hangup.poll()
    os.killpg(0, signal.SIGKILL)


def open_smac(map_name, seed, patience):
    """A started smac.env.StarCraft2Env, every fault of which raises, and the game's version."""
    from absl import flags
    from smac.env import StarCraft2Env

    flags.FLAGS.sc2_timeout = max(int(patience), 1)  # pysc2's; the trainer has its own for steps
    # continuing_episode only makes smac tell a time limit from a defeat, as info["episode_limit"]
    game = StarCraft2Env(map_name=map_name, seed=seed, continuing_episode=True)

    def full_restart():
        raise RuntimeError("StarCraft II crashed or reported an error")

    game.full_restart = full_restart  # smac's goes on with stale units and a wrong max_reward
    game.reset()
    # Right even if units came late, when smac has counted some of them twice
    units = [unit.health_max + unit.shield_max for unit in game.enemies.values()]
    game.max_reward = game.n_enemies * game.reward_death_value + game.reward_win + sum(units)
    # While this is 0 a reset would launch a second game and count max_reward again
    game._episode_count = 1
    ping = game._controller.ping()
    return game, f"StarCraft II {ping.game_version} (build {ping.base_build})"


def sight(game):
    """(obs (N, O), state (S,), avail_actions (N, A)) of one game."""
    return (
        np.array(game.get_obs(), np.float32),
        np.array(game.get_state(), np.float32),
        np.array(game.get_avail_actions(), bool),
    )


def first_sight(game):
    """`sight` after a reset, when nobody can be dead: no-op, action 0, is for the dead only."""
    obs, state, avail_actions = sight(game)
    if avail_actions[:, 0].any():
        raise RuntimeError("dead units after a reset")
    return obs, state, avail_actions


if __name__ == "__main__":
    play_game(int(sys.argv[1]))
