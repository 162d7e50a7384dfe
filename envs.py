"""The environments of QMIX (https://arxiv.org/abs/1803.11485) behind one vector contract.

    env = make_env("auto", "2s3z", n_envs=8, seed=1)      # a key of ENVS: auto, sim, sc2, two_step

E environments run side by side with N agents, A actions, O numbers per observation, S per state:

    env.n_envs, env.n_agents, env.n_actions, env.obs_dim, env.state_dim, env.episode_limit
    env.obs            (E, N, O) float32   what each agent sees now
    env.state          (E, S)    float32   what only the mixer sees
    env.avail_actions  (E, N, A) bool      every row has at least one True
    env.reset(mask=None)                   begin new episodes where mask (E,) is True; None: all
    env.step(actions)  (E, N) int64 ->     Step(reward (E,) float32; terminated, truncated,
                                                battle_won, aborted, each (E,) bool)
    env.close()

- The constructor (map_name, n_envs, seed, **options) begins the first episodes: nobody calls reset
  before the first step.
- Nothing resets itself: after a step the arrays hold the last observation of a finished episode;
  store it, then call reset(mask). Nobody waits for the longest episode.
- `terminated` (the task ended) and `truncated` (time ran out) are different facts.
- `battle_won`: what the win rates count, by which also the best network is chosen. A game without
  wins leaves it False, and the best network is that of the highest return.
- `aborted`: the game died or hung. Throw that episode away and reset; its arrays show nothing.
- The arrays and the fields of Step are overwritten by the next step or reset: copy what you keep.
- Environment i is seeded with seed + i.

Your own environment: a class with these names (TwoStepGame is short) and one line in ENVS. In a
file of its own it gets Step by `from starcraft import Step`. Where it has no state, let it be all
observations side by side. It may have more; few do:

    env.state_dict(), env.load_state_dict(saved)    without them a run does not resume exactly;
                                                    dictionaries of arrays and plain numbers
    env.map_name                                    only where --map chooses one; names the run
    env.version                                     of the game, for config.json
    env.tests_play_here = True                      there can be no second one for the tests
"""

import inspect
import sys

import numpy as np

from starcraft import Step
from starcraft.sc2 import SMACWorkers, sc2_problem

PARALLEL = 32  # environments side by side, unless told otherwise


class TwoStepGame:
    """The paper's two-step matrix game (section 5): two agents, two actions, two steps.

    In state 1 the first agent's action leads to 2A (action 0) or 2B (action 1), reward 0. State 2A
    pays 7 whatever they do; 2B pays [[0, 1], [1, 8]]. Both agents, and the mixer, see which of the
    three states they are in as a one-hot vector. The best return is 8, the safe one 7.
    """

    n_agents, n_actions, obs_dim, state_dim, episode_limit = 2, 2, 3, 3, 2
    PAYOFF = np.array([[[0, 0], [0, 0]], [[7, 7], [7, 7]], [[0, 1], [1, 8]]], np.float32)

    def __init__(self, map_name=None, n_envs=1, seed=0):
        del map_name, seed  # there are no maps, and nothing is random
        self.n_envs = n_envs
        self.where = np.zeros(n_envs, np.int64)  # (E,) 0: state 1, 1: state 2A, 2: state 2B
        self.avail_actions = np.ones((n_envs, 2, 2), bool)  # (E, N, A)
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
        if not np.isin(saved["where"], range(3)).all():
            raise ValueError("the saved two-step game is in a state that it does not have")
        self.where[:] = saved["where"]
        self._observe()

    def close(self):
        pass


def simulator(map_name, n_envs, seed, **options):
    """Battles on our simulator; options: SMAC's own, and balance (starcraft/simulator.py)."""
    from starcraft.simulator import BattleSim  # here, because numba takes a second

    return BattleSim(map_name, n_envs, seed, **options)


def starcraft2(map_name, n_envs, seed, timeout=60.0, ray=None, games=2):
    """SMAC on the real game. A game that answers no request for `timeout` seconds is restarted.
    ray: address of a Ray cluster; the games are played there, `games` of them to an actor."""
    if ray is not None:
        from starcraft.ray_sc2 import RaySMAC

        return RaySMAC(map_name, n_envs, seed, timeout, ray, games)
    if problem := sc2_problem(map_name):
        raise ValueError(f"StarCraft II cannot be played here: {problem}")
    return SMACWorkers(map_name, n_envs, seed, timeout)


def whichever_is_there(map_name, n_envs, seed, **options):
    """StarCraft II where it is installed, else the simulator, and says so."""
    problem = sc2_problem(map_name)
    if problem is None:
        return make_env("sc2", map_name, n_envs, seed, **options)
    env = make_env("sim", map_name, n_envs, seed, **options)
    print(f"Playing the simulator, not StarCraft II: {problem}", file=sys.stderr)
    return env


# name -> constructor, called with what --map, --n-envs (None: not given) and the seed say, and with
# --env-args as named arguments: add your own.
ENVS = {
    "auto": whichever_is_there,
    "sim": simulator,
    "sc2": starcraft2,
    "two_step": TwoStepGame,
}


def make_env(env="auto", map_name="2s3z", n_envs=None, seed=0, **options):
    """The vector environment ENVS[env]; env.name says which.

    n_envs: how many run side by side; None: PARALLEL, or as many games of StarCraft II as cores
    and memory allow. Raises ValueError: what cannot be had, and how to have it, in one line; and
    starcraft.sc2.GameUnavailable: everything is installed, yet StarCraft II does not start.
    """
    if env not in ENVS:
        raise ValueError(f"unknown environment {env!r}: choose from {', '.join(ENVS)}")
    if n_envs is not None and n_envs < 1:
        raise ValueError(f"n_envs must be at least 1, not {n_envs}")
    if n_envs is None and env not in ("auto", "sc2"):
        n_envs = PARALLEL
    try:
        inspect.signature(ENVS[env]).bind(map_name, n_envs, seed, **options)
    except TypeError as error:
        called = f"environment {env}, called with map, n_envs, seed and --env-args"
        raise ValueError(f"{called}: {error}") from None
    made = ENVS[env](map_name, n_envs, seed, **options)
    if env != "auto":  # which is no name of a game
        made.name = env
    E, N = made.n_envs, made.n_agents
    for name, shape, dtype in (
        ("obs", (E, N, made.obs_dim), "float32"),
        ("state", (E, made.state_dim), "float32"),
        ("avail_actions", (E, N, made.n_actions), "bool"),
    ):
        array = getattr(made, name)
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(
                f"environment {env}: {name} must be {dtype} of shape {shape}, not {array.dtype} of"
                f" shape {array.shape}"
            )
    if not made.avail_actions.any(axis=-1).all():
        raise ValueError(f"environment {env}: an agent has no available action; it must have one")
    return made
