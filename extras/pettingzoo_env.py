"""PettingZoo both ways: SMAC's battles for others, and others' games for QMIX.

PettingZoo (Terry et al. 2021, https://arxiv.org/abs/2009.14471) names its agents and hands every
one a space, an observation and a reward of its own. QMIX (https://arxiv.org/abs/1803.11485) wants a
team: one reward, one state, arrays of the same width for all.

    pip install -r extras/requirements-pettingzoo.txt

    env = SMACParallelEnv("2s3z")                              # a pettingzoo.ParallelEnv
    env = PettingZooEnvs("mpe2.simple_spread_v3:parallel_env", n_envs=8, seed=1)    # see envs.py

Shape legend: E environments, N agents, A actions, O observation, S state.
"""

import importlib
import importlib.metadata
from collections import Counter
from functools import partial

import numpy as np

try:
    from gymnasium import spaces
    from gymnasium.utils import EzPickle
    from pettingzoo import ParallelEnv
except ImportError as error:
    raise ImportError(
        f"{error.name} is missing: pip install -r extras/requirements-pettingzoo.txt"
    ) from None

from starcraft import Step
from starcraft.draw import draw
from starcraft.interface import is_whole
from starcraft.simulator import BattleSim


class SMACParallelEnv(ParallelEnv, EzPickle):
    """A battle of the simulator as a pettingzoo.ParallelEnv.

    Agents are called by unit type: "stalker_0", "stalker_1", "zealot_0", ... An observation is
    {"observation": (O,) float32, "action_mask": (A,) int8}, and all get the team's reward. An agent
    that dies is terminated and leaves; the end of the battle terminates all, the time limit
    truncates all. Info says "battle_won".

    Args:
        map_name: a key of starcraft.maps.MAPS.
        render_mode: "rgb_array": render() returns a picture, (H, W, 3) uint8.
        **options: of BattleSim, SMAC's among them.
    """

    metadata = {"name": "smac_v0", "render_modes": ["rgb_array"]}  # noqa: RUF012 (PettingZoo's way)

    def __init__(self, map_name="8m", render_mode=None, **options):
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', not {render_mode!r}")
        EzPickle.__init__(self, map_name, render_mode, **options)
        self.render_mode = render_mode
        self._make_sim = partial(BattleSim, map_name, 1, **options)
        self._sim = self._make_sim(seed=int(np.random.SeedSequence().generate_state(1)[0]))
        self.max_cycles = self._sim.episode_limit
        kinds, count = self._sim.units[0]["kind"][: self._sim.n_agents], Counter()
        self.possible_agents = []
        for kind in kinds:
            name = self._sim.type_names[kind].lower()
            self.possible_agents.append(f"{name}_{count[name]}")
            count[name] += 1
        self.agents = []
        observation = spaces.Box(-1.0, 1.0, (self._sim.obs_dim,), np.float32)
        mask = spaces.Box(0, 1, (self._sim.n_actions,), np.int8)
        self.observation_spaces, self.action_spaces = {}, {}
        for agent in self.possible_agents:
            self.observation_spaces[agent] = spaces.Dict(
                {"observation": observation, "action_mask": mask}
            )
            self.action_spaces[agent] = spaces.Discrete(self._sim.n_actions)
        # cooldowns can be a little above SMAC's greatest, by which it divides
        self.state_space = spaces.Box(-np.inf, np.inf, (self._sim.state_dim,), np.float32)

    def observation_space(self, agent):
        return self.observation_spaces[agent]

    def action_space(self, agent):
        return self.action_spaces[agent]

    def reset(self, seed=None, options=None):
        """seed: begins a new stream of random numbers. Returns observations, infos."""
        if seed is None:
            self._sim.reset()
        else:
            self._sim = self._make_sim(seed=seed)
        self.agents = self.possible_agents.copy()
        return self._observe(), {agent: {"battle_won": False} for agent in self.agents}

    def _observe(self):
        """What those see who were there at the beginning of the step."""
        seen = {}
        for i, agent in enumerate(self.possible_agents):
            if agent in self.agents:
                mask = self._sim.avail_actions[0, i].astype(np.int8)
                seen[agent] = {"observation": self._sim.obs[0, i].copy(), "action_mask": mask}
        return seen

    def step(self, actions):
        """actions: {agent: int} of all living agents. Raises ValueError for unavailable ones."""
        if missing := set(self.agents) - set(actions):
            raise ValueError(f"no action for {min(missing)}")
        chosen = [int(actions[a]) if a in self.agents else 0 for a in self.possible_agents]
        step = self._sim.step(np.array([chosen]))
        ended, stopped = bool(step.terminated[0]), bool(step.truncated[0])
        dead = self._sim.units[0]["health"][: len(self.possible_agents)] <= 0
        dead = dict(zip(self.possible_agents, dead.tolist(), strict=True))
        seen, agents = self._observe(), self.agents
        rewards = dict.fromkeys(agents, float(step.reward[0]))
        terminations = {agent: ended or dead[agent] for agent in agents}
        truncations = dict.fromkeys(agents, stopped)
        infos = {agent: {"battle_won": bool(step.battle_won[0])} for agent in agents}
        self.agents = [a for a in agents if not (terminations[a] or truncations[a])]
        return seen, rewards, terminations, truncations, infos

    def state(self):
        """(S,) float32."""
        return self._sim.state[0].copy()

    def render(self):
        """With render_mode "rgb_array": a picture, (H, W, 3) uint8."""
        if self.render_mode is None:
            return None
        return draw(self._sim.units[0], self._sim.world, self._sim.type_names)


class PettingZooEnvs:
    """E copies of a pettingzoo.ParallelEnv with discrete actions, on the contract of envs.py.

    Observations are flattened and padded with zeros to the widest, action sets to the largest.
    `state` is the environment's own where it has one, else the observations side by side. Actions
    are masked by "action_mask" in the observation or the info. An agent that has left is a dead
    one: it sees zeros, and only action 0 is available. The battle is won if an info says
    "battle_won". Copy i is seeded with seed + i, once, at its first reset.

    Args:
        spec: "MODULE:FACTORY", what to import and call to get an environment.
        team_reward: "sum" or "mean" of the rewards of all agents that got one.
        episode_limit: steps after which an episode is truncated here; None: the environment's own
            max_cycles, or the one in env_args.
        **env_args: given to the factory.

    Raises ValueError, in one line, for what cannot be imported or is not such an environment.
    """

    name = "pettingzoo"

    def __init__(
        self, spec, n_envs=1, seed=0, *, team_reward="sum", episode_limit=None, **env_args
    ):
        if team_reward not in ("sum", "mean"):
            raise ValueError(f"team_reward must be sum or mean, not {team_reward!r}")
        if not (is_whole(n_envs, 1, 10**6) and is_whole(seed, 0, 2**32 - 1 - n_envs)):
            raise ValueError(f"n_envs must be at least 1 and seed at least 0, not {n_envs}, {seed}")
        factory, self.version = load_factory(spec)
        self.map_name, self.n_envs, self.team_reward = spec, n_envs, team_reward
        try:
            self._envs = [factory(**env_args) for _ in range(n_envs)]
        except (TypeError, ValueError, AssertionError) as error:
            raise ValueError(f"{spec} does not take these arguments: {error!r}") from None
        first = self._envs[0]
        if not hasattr(first, "possible_agents") or hasattr(first, "agent_iter"):
            raise ValueError(f"{spec} makes no ParallelEnv: name a factory like parallel_env")
        self.agents = list(first.possible_agents)
        self._action_spaces = [first.action_space(agent) for agent in self.agents]
        for agent, space in zip(self.agents, self._action_spaces, strict=True):
            if not isinstance(space, spaces.Discrete):
                raise ValueError(f"{spec}: the actions of {agent} are not discrete but {space}")
        self._obs_spaces = [observed_part(first.observation_space(a)) for a in self.agents]
        own_limit = env_args.get("max_cycles", getattr(first.unwrapped, "max_cycles", None))
        self.episode_limit = own_limit if episode_limit is None else episode_limit
        if not is_whole(self.episode_limit, 1, 10**9):
            raise ValueError(f"{spec} does not say how long an episode lasts: give episode_limit")

        E, N = n_envs, len(self.agents)
        self.n_agents = N
        self.n_actions = max(int(space.n) for space in self._action_spaces)
        self.obs_dim = max(spaces.flatdim(space) for space in self._obs_spaces)
        self.obs = np.zeros((E, N, self.obs_dim), np.float32)
        self.avail_actions = np.zeros((E, N, self.n_actions), bool)
        self._steps = np.zeros(E, np.int64)
        self._over = np.zeros(E, bool)
        self._seeds = [seed + i for i in range(E)]  # of each copy's next reset
        state = self._begin(0)
        self.state_dim = state.size
        self.state = np.zeros((E, self.state_dim), np.float32)
        self.state[0] = state
        self.reset(np.arange(E) > 0)

    def _begin(self, i):
        """A new episode in copy i. Returns its state."""
        seen, infos = self._envs[i].reset(seed=self._seeds[i])
        self._seeds[i], self._steps[i], self._over[i] = None, 0, False
        return self._show(i, seen, infos, there=set(seen))

    def _show(self, i, seen, infos, there):
        """Fill in what the agents `there` in copy i see and can do. Returns the state."""
        self.obs[i], self.avail_actions[i] = 0, False
        for n, agent in enumerate(self.agents):
            if agent not in there:
                self.avail_actions[i, n, 0] = True
                continue
            view, size = seen[agent], int(self._action_spaces[n].n)
            mask = infos.get(agent, {}).get("action_mask")
            if isinstance(view, dict) and "observation" in view:
                mask, view = view.get("action_mask", mask), view["observation"]
            flat = spaces.flatten(self._obs_spaces[n], view)
            self.obs[i, n, : flat.size] = flat
            self.avail_actions[i, n, :size] = True if mask is None else np.asarray(mask, bool)
            if not self.avail_actions[i, n].any():
                if not self._over[i]:
                    raise ValueError(f"{self.map_name}: {agent} has no available action")
                self.avail_actions[i, n, 0] = True  # nobody acts any more, but no row may be empty
        try:
            return np.ravel(self._envs[i].state()).astype(np.float32)
        except (NotImplementedError, AttributeError):
            return self.obs[i].ravel()  # (N, O) -> (N * O,)

    def reset(self, mask=None):
        """Begin new episodes where mask (E,) bool is True (everywhere if None)."""
        for i in range(self.n_envs):
            if mask is None or mask[i]:
                self.state[i] = self._begin(i)

    def step(self, actions):
        """actions (E, N) integers. Returns a Step.

        Raises ValueError for actions that are not available, and for episodes that are over.
        """
        results = [self._step(i, row) for i, row in enumerate(np.asarray(actions).tolist())]
        reward, terminated, truncated, won = map(np.array, zip(*results, strict=True))
        return Step(
            reward.astype(np.float32), terminated, truncated, won, np.zeros(self.n_envs, bool)
        )

    def _step(self, i, row):
        """Play actions `row` (N) in copy i: reward, terminated, truncated, battle_won."""
        env = self._envs[i]
        if self._over[i]:
            raise ValueError(f"environment {i}: the episode is over, reset it first")
        chosen = {}
        for n, (agent, action) in enumerate(zip(self.agents, row, strict=True)):
            if not (0 <= action < self.n_actions and self.avail_actions[i, n, action]):
                raise ValueError(f"environment {i}: {agent} cannot perform action {action}")
            if agent in env.agents:
                chosen[agent] = action + int(self._action_spaces[n].start)
        seen, rewards, ended, stopped, infos = env.step(chosen)
        self._steps[i] += 1
        leaving = {agent for agent in ended if ended[agent] or stopped[agent]}
        over = not set(env.agents) - leaving
        # what the time limit ends for one of the last agents, it ends for the team
        truncated = over and not all(ended[agent] for agent in leaving)
        terminated = over and not truncated
        if not over and self._steps[i] >= self.episode_limit:
            truncated = over = True
        self._over[i] = over
        there = set(seen) if over else set(seen) - leaving  # at the end, what was seen last
        self.state[i] = self._show(i, seen, infos, there)
        won = over and any(info.get("battle_won", False) for info in infos.values())
        total = sum(rewards.values())
        if self.team_reward == "mean":
            total /= max(len(rewards), 1)
        return total, terminated, truncated, bool(won)

    def close(self):
        for env in self._envs:
            env.close()


def load_factory(spec):
    """What "MODULE:FACTORY" names, and name and version of the package it comes from: of PettingZoo
    where that is no installed one."""
    module_name, _, factory_name = spec.partition(":")
    if not (module_name and factory_name):
        raise ValueError(
            f"{spec!r} is not MODULE:FACTORY, as in mpe2.simple_spread_v3:parallel_env"
        )
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{spec} cannot be imported: {error}") from None
    package = module_name.partition(".")[0]
    owner = importlib.metadata.packages_distributions().get(package, ["pettingzoo"])[0]
    return factory, f"{owner} {importlib.metadata.version(owner)}"


def observed_part(space):
    """The space of what an agent sees, without the action mask beside it."""
    named = isinstance(space, spaces.Dict) and "observation" in space.spaces
    return space["observation"] if named else space
