"""PettingZoo both ways, against its own tests, the simulator itself and numbers made by hand.

python -m pytest extras/test_pettingzoo.py      (pip install -r extras/requirements-pettingzoo.txt)
"""

import pickle
import warnings

import numpy as np
import pytest

pytest.importorskip("pettingzoo", reason="needs pip install -r extras/requirements-pettingzoo.txt")

from gymnasium import spaces
from pettingzoo import ParallelEnv
from pettingzoo.test import api_test, parallel_api_test, seed_test
from pettingzoo.utils.conversions import parallel_to_aec

from extras.games import pettingzoo
from extras.pettingzoo_env import PettingZooEnvs, SMACParallelEnv
from starcraft.simulator import BattleSim, random_actions

# ------------------------------------------------------------------------- SMAC's battles


@pytest.mark.parametrize("name", ["3m", "2s3z", "MMM"])
def test_pettingzoos_own_tests(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a live agent was given nothing, a dead one something
        parallel_api_test(SMACParallelEnv(name), num_cycles=500)
        for known in (
            "Observation space for each agent",
            "Observation is not",
            "Observation numpy",
        ):
            warnings.filterwarnings("ignore", known)  # about observations with an action mask
        api_test(parallel_to_aec(SMACParallelEnv(name)), num_cycles=500)
        seed_test(lambda: parallel_to_aec(SMACParallelEnv(name)), num_cycles=500)


def play(env, seed, reset_seed):
    """Everything that a random player gets to see in two battles."""
    rng, seen = np.random.default_rng(seed), []
    for given in (reset_seed, None):
        obs, infos = env.reset(seed=given)
        seen += [obs, infos, env.state()]
        while env.agents:
            masks = {agent: obs[agent]["action_mask"] for agent in env.agents}
            actions = {a: int(rng.choice(np.flatnonzero(mask))) for a, mask in masks.items()}
            obs, *rest = env.step(actions)
            seen += [obs, *rest, env.state()]
    return pickle.dumps(seen)


def test_a_seed_decides_the_battle():
    env = SMACParallelEnv("2s3z")
    first = play(env, 0, reset_seed=7)
    assert play(env, 0, reset_seed=7) == first == play(SMACParallelEnv("2s3z"), 0, reset_seed=7)
    assert play(env, 0, reset_seed=8) != first != play(env, 0, reset_seed=None)
    assert play(pickle.loads(pickle.dumps(env)), 0, reset_seed=7) == first


def test_agents_spaces_and_state():
    env = SMACParallelEnv("2s3z", obs_last_action=True)
    assert env.possible_agents == ["stalker_0", "stalker_1", "zealot_0", "zealot_1", "zealot_2"]
    sim = BattleSim("2s3z", 1, 3, obs_last_action=True)
    obs, _ = env.reset(seed=3)
    for i, agent in enumerate(env.possible_agents):
        assert env.observation_space(agent).contains(obs[agent])
        assert obs[agent]["observation"].tolist() == sim.obs[0, i].tolist()
        assert obs[agent]["action_mask"].tolist() == sim.avail_actions[0, i].tolist()
        assert env.action_space(agent) == spaces.Discrete(11)
    assert env.state_space.contains(env.state()) and env.state().tolist() == sim.state[0].tolist()


def test_the_dead_leave_and_the_others_fight_on():
    env = SMACParallelEnv("3m")
    env.reset(seed=1)
    rows = np.array([[10, 16, 45, 0, 0, 0], [2, 5, 45, 0, 0, 0], [2, 3, 45, 0, 0, 0]])
    enemy = rows + np.eye(6, dtype=int)[0] * 4  # 4 cells further east
    rows[0, 2] = 1  # one hit and it is gone
    enemy[1:, 2] = 0
    env._sim.place_units(0, rows, enemy)
    steps = [env.step({agent: 1 for agent in env.agents}) for _ in range(4)]
    last = next(k for k, step in enumerate(steps) if step[2]["marine_0"])
    assert set(steps[last][0]) == set(env.possible_agents)  # it is told of its death
    assert env.agents == ["marine_1", "marine_2"]
    assert set(steps[last + 1][0]) == {"marine_1", "marine_2"}
    assert steps[last][2] == {"marine_0": True, "marine_1": False, "marine_2": False}
    with pytest.raises(ValueError, match="no action for marine_2"):
        env.step({"marine_1": 1})
    with pytest.raises(ValueError, match="cannot perform action 0"):
        env.step({"marine_1": 1, "marine_2": 0})


def test_the_end_of_the_battle_terminates():
    env = SMACParallelEnv("3m")
    env.reset(seed=1)
    rows = np.array([[10, y, 45, 0, 0, 0] for y in (14, 16, 18)])
    enemy = rows + np.eye(6, dtype=int)[0] * 4
    enemy[:, 2] = [1, 0, 0]  # one hit and the battle is won
    env._sim.place_units(0, rows, enemy)
    while env.agents:
        _, rewards, terminations, truncations, infos = env.step(dict.fromkeys(env.agents, 6))
    assert all(terminations.values()) and not any(truncations.values())
    assert infos == {agent: {"battle_won": True} for agent in env.possible_agents}
    # 1 point of health, a death and the victory, of at most 3 x 55 + 200, scaled to 20
    assert list(rewards.values()) == pytest.approx([(1 + 10 + 200) / (365 / 20)] * 3)


def test_the_time_limit_truncates():
    env = SMACParallelEnv("2s_vs_1sc")
    env.reset(seed=1)
    for _ in range(300):
        assert len(env.agents) == 2
        _, _, terminations, truncations, infos = env.step(dict.fromkeys(env.agents, 1))
    assert not any(terminations.values()) and all(truncations.values()) and not env.agents
    assert infos == {agent: {"battle_won": False} for agent in env.possible_agents}


# ----------------------------------------------------------------------------- others' games


class Relay(ParallelEnv):
    """Three unlike agents. b leaves after two steps; after four steps the time is up.

    Rewards: a gets 1 x action, b 10 x, c 100 x. a sees the step and its half, b (with a mask of
    its own) three sevens, c a number from 0 to 3 drawn from the seed.
    """

    metadata = {"name": "relay"}  # noqa: RUF012
    possible_agents = ["a", "b", "c"]  # noqa: RUF012
    max_cycles = 4

    def __init__(self, end="truncated", own_state=False, won=False):
        self.end, self.own_state, self.won = end, own_state, won
        self.rng = np.random.default_rng()
        self.told = []

    def observation_space(self, agent):
        box, mask = spaces.Box(-9, 9, (3,)), spaces.Box(0, 1, (3,), np.int8)
        both = spaces.Dict({"observation": box, "action_mask": mask})
        return {"a": spaces.Box(-9, 9, (2, 1)), "b": both, "c": spaces.Discrete(4)}[agent]

    def action_space(self, agent):
        return {"a": spaces.Discrete(2), "b": spaces.Discrete(3, start=5), "c": spaces.Discrete(4)}[
            agent
        ]

    def look(self, agents):
        a, c = np.array([[self.t], [self.t / 2]], np.float32), int(self.rng.integers(4))
        b = {"observation": np.full(3, 7.0, np.float32), "action_mask": np.array([0, 1, 1])}
        views = {"a": a, "b": b, "c": c}
        infos = {"c": {"action_mask": [self.t < 4, 0, 0, self.t % 2]}}
        return {k: views[k] for k in agents}, {k: infos.get(k, {}) for k in agents}

    def reset(self, seed=None, options=None):
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.t, self.agents = 0, ["a", "b", "c"]
        return self.look(self.agents)

    def step(self, actions):
        self.told.append(actions)
        self.t += 1
        agents, over = self.agents, self.t == 4
        seen, infos = self.look(agents)
        scale = {"a": 1, "b": 10, "c": 100}
        rewards = {k: scale[k] * float(actions[k]) for k in agents}
        ended = {
            k: (over and self.end == "terminated") or (k == "b" and self.t == 2) for k in agents
        }
        if over and self.end == "mixed":
            ended["c"] = True
        stopped = {k: over and not ended[k] for k in agents}
        if self.won and self.t >= 3:  # a step too early: it counts at the end
            infos["a"]["battle_won"] = True
        self.agents = [k for k in agents if not (ended[k] or stopped[k])]
        return seen, rewards, ended, stopped, infos

    def state(self):
        if not self.own_state:
            raise NotImplementedError
        return np.array([[self.t, 42]])


HERE = f"{__name__}:Relay"


def numbers_of(seed, count):
    """What c sees in `count` looks, for this seed."""
    return np.random.default_rng(seed).integers(4, size=count).tolist()


def test_by_hand():
    envs = PettingZooEnvs(HERE, n_envs=2, seed=5)
    assert (envs.n_agents, envs.n_actions, envs.obs_dim, envs.state_dim) == (3, 4, 4, 12)
    assert (envs.name, envs.map_name, envs.episode_limit) == ("pettingzoo", HERE, 4)
    assert envs.version.startswith("pettingzoo 1.")
    one_hot = np.eye(4)[[numbers_of(5, 5), numbers_of(6, 5)]]  # (E, steps, 4)
    assert envs.obs.dtype == np.float32 and envs.obs[:, 0].tolist() == [[0, 0, 0, 0]] * 2
    assert envs.obs[:, 1].tolist() == [[7, 7, 7, 0]] * 2
    assert envs.obs[:, 2].tolist() == one_hot[:, 0].tolist()
    assert envs.state.tolist() == envs.obs.reshape(2, 12).tolist()  # (E, N, O) -> (E, N * O)
    masks = [[True, True, False, False], [False, True, True, False], [True, False, False, False]]
    assert envs.avail_actions.tolist() == [masks] * 2

    step = envs.step(np.array([[1, 2, 0], [0, 1, 0]]))  # b's actions begin at 5
    assert step.reward.tolist() == [1 + 10 * 7, 10 * 6] and step.reward.dtype == np.float32
    assert envs._envs[0].told == [{"a": 1, "b": 7, "c": 0}]
    assert not (step.terminated | step.truncated | step.battle_won | step.aborted).any()
    assert envs.obs[0].tolist() == [[1, 0.5, 0, 0], [7, 7, 7, 0], one_hot[0, 1].tolist()]
    assert envs.avail_actions[0, 2].tolist() == [True, False, False, True]

    step = envs.step(np.array([[1, 2, 3], [0, 1, 3]]))  # b leaves: a dead agent from now on
    assert step.reward.tolist() == [1 + 70 + 300, 60 + 300]
    assert envs.obs[0].tolist() == [[2, 1, 0, 0], [0, 0, 0, 0], one_hot[0, 2].tolist()]
    assert envs.avail_actions[0, 1].tolist() == [True, False, False, False]
    assert not (step.terminated | step.truncated).any()

    step = envs.step(np.array([[1, 0, 0], [0, 0, 0]]))
    assert step.reward.tolist() == [1, 0] and envs._envs[0].told[-1] == {"a": 1, "c": 0}
    step = envs.step(np.array([[1, 0, 3], [0, 0, 0]]))
    assert step.reward.tolist() == [301, 0]
    assert step.truncated.tolist() == [True, True] and not step.terminated.any()
    assert envs.obs[0].tolist() == [[4, 2, 0, 0], [0, 0, 0, 0], one_hot[0, 4].tolist()]  # the last
    with pytest.raises(ValueError, match="environment 0: the episode is over"):
        envs.step(np.zeros((2, 3), int))
    before = envs.obs[1].copy()
    envs.reset(np.array([True, False]))
    assert envs.obs[0, 0].tolist() == [0, 0, 0, 0] and envs.obs[0, 1].tolist() == [7, 7, 7, 0]
    assert envs.obs[1].tobytes() == before.tobytes()
    # the stream of random numbers goes on, it does not begin again
    assert envs.obs[0, 2].tolist() == np.eye(4)[numbers_of(5, 6)[5]].tolist()


@pytest.mark.parametrize(
    ("end", "terminated"), [("terminated", True), ("truncated", False), ("mixed", False)]
)
@pytest.mark.parametrize("won", [True, False])
def test_ends(end, terminated, won):
    envs = PettingZooEnvs(HERE, end=end, won=won)
    for row in ([0, 1, 0], [0, 1, 0], [0, 0, 0]):
        step = envs.step(np.array([row]))
        assert not (step.terminated[0] or step.truncated[0] or step.battle_won[0])
    step = envs.step(np.array([[0, 0, 0]]))
    assert (step.terminated[0], step.truncated[0]) == (terminated, not terminated)
    assert step.battle_won[0] == won and step.battle_won.dtype == bool


def test_options():
    envs = PettingZooEnvs(HERE, own_state=True, team_reward="mean", episode_limit=3)
    assert envs.state_dim == 2 and envs.state.tolist() == [[0, 42]]
    assert envs.step(np.array([[1, 1, 0]])).reward[0] == pytest.approx((1 + 60) / 3)
    assert envs.state.tolist() == [[1, 42]] and envs.state.dtype == np.float32
    envs.step(np.array([[1, 1, 0]]))
    step = envs.step(np.array([[1, 0, 0]]))
    assert step.reward[0] == 0.5  # b got none
    assert step.truncated[0] and not step.terminated[0]  # after three steps, as told
    assert envs.obs[0, 0].tolist() == [3, 1.5, 0, 0] and envs.avail_actions[0, 2, 3]
    made = pettingzoo(HERE, 2, 9, own_state=True)
    assert made.n_envs == 2 and made.map_name == HERE and made.state_dim == 2
    assert made.obs[1, 2].argmax() == numbers_of(10, 1)[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(spec="Relay"), "'Relay' is not MODULE:FACTORY"),
        (dict(spec="no_such_module:env"), "cannot be imported: No module named 'no_such_module'"),
        (dict(spec="math:parallel_env"), "math:parallel_env cannot be imported: .*parallel_env"),
        (dict(spec=".x:y"), "cannot be imported: .*relative import"),
        (dict(spec=f"{__name__}:asserting"), "does not take these arguments: .*x must be small"),
        (dict(spec="math:pi"), "math:pi does not take these arguments: .*not callable"),
        (dict(spec="builtins:dict"), "builtins:dict makes no ParallelEnv"),
        (dict(colour=1), "does not take these arguments: .*colour"),
        (dict(team_reward="max"), "team_reward must be sum or mean"),
        (dict(n_envs=0), "n_envs must be at least 1"),
        (dict(seed=-1), "seed at least 0"),
        (dict(n_envs=1.5), "n_envs must be at least 1"),
        (dict(episode_limit=0), "give episode_limit"),
        (dict(spec=f"{__name__}:continuous"), "the actions of a are not discrete but Box"),
        (dict(spec=f"{__name__}:endless"), "does not say how long an episode lasts"),
        (dict(spec=f"{__name__}:turns"), "makes no ParallelEnv: name a factory like parallel_env"),
    ],
)
def test_what_cannot_be_played_is_refused_in_one_line(arguments, words):
    with pytest.raises(ValueError, match=words) as caught:
        PettingZooEnvs(**({"spec": HERE} | arguments))
    assert "\n" not in str(caught.value)


def asserting():
    raise AssertionError("x must be small")


def continuous():
    env = Relay()
    env.action_space = lambda agent: spaces.Box(0, 1, (1,))
    return env


def endless():
    env = Relay()
    env.max_cycles = None
    return env


def turns():
    return parallel_to_aec(SMACParallelEnv("3m"))


def test_unavailable_actions_are_refused():
    envs = PettingZooEnvs(HERE, 2)
    for wrong in ([0, 0, 0], [2, 1, 0], [0, 1, 4], [-1, 1, 0]):
        with pytest.raises(ValueError, match=r"environment 0: . cannot perform action"):
            envs.step(np.array([wrong, [0, 1, 0]]))


@pytest.mark.parametrize("name", ["3m", "MMM"])
def test_there_and_back(name):
    """The simulator behind SMACParallelEnv behind PettingZooEnvs is the simulator."""
    spec = "extras.pettingzoo_env:SMACParallelEnv"
    there = PettingZooEnvs(spec, 2, 4, team_reward="mean", map_name=name)
    sim, rng, ends = BattleSim(name, 2, 4), np.random.default_rng(0), 0
    assert there.episode_limit == sim.episode_limit
    for _ in range(200):
        for array in ("obs", "state", "avail_actions"):
            assert getattr(there, array).tobytes() == getattr(sim, array).tobytes()
        actions = random_actions(sim.avail_actions, rng)
        mine, theirs = sim.step(actions), there.step(actions)
        np.testing.assert_allclose(theirs.reward, mine.reward, rtol=1e-6)
        for k in range(1, 5):
            assert theirs[k].tolist() == mine[k].tolist()
        over = mine.terminated | mine.truncated
        ends += over.sum()
        sim.reset(over)
        there.reset(over)
    assert ends >= 4


def test_render_gives_a_picture():
    env = SMACParallelEnv("3m", render_mode="rgb_array")
    env.reset(seed=1)
    assert env.render().dtype == np.uint8 and SMACParallelEnv("3m").render() is None
    with pytest.raises(ValueError, match="rgb_array"):
        SMACParallelEnv("3m", render_mode="human")
