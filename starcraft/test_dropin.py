"""BattleSim's checks of what it is given, and StarCraft2Env against SMAC's class of that name.

SMAC: https://arxiv.org/abs/1902.04043, github.com/oxwhirl/smac (commit d6aab33). golden.npz holds
what that class said of its 23 maps. Where SMAC is installed (StarCraft II is not needed), its own
unmodified class is shown the simulator's units and must say the same to the last bit.

    python -m pytest starcraft/test_dropin.py
"""

import inspect
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from .maps import MAPS, STOP
from .simulator import BattleSim, MultiAgentEnv, StarCraft2Env

META = json.loads(str(np.load(Path(__file__).with_name("golden.npz"))["meta_json"]))
KINDS = (
    "marine", "marauder", "medivac", "hydralisk", "zergling", "baneling", "stalker", "colossus",
    "zealot",
)  # fmt: skip
TYPE_IDS = {  # of the game
    "Marine": 48, "Marauder": 51, "Medivac": 54, "Zealot": 73, "Stalker": 74, "Colossus": 4,
    "Hydralisk": 107, "Zergling": 105, "Baneling": 9, "SpineCrawler": 98,
}  # fmt: skip
MAP_TYPES = [  # name, the agents' unit types in the order of their numbers, maps
    (
        *("marines", ["marine"]),
        ["3m", "8m", "25m", "5m_vs_6m", "8m_vs_9m", "10m_vs_11m", "27m_vs_30m", "2m_vs_1z"],
    ),
    ("MMM", ["marauder", "marine", "medivac"], ["MMM", "MMM2"]),
    ("stalkers_and_zealots", ["stalker", "zealot"], ["2s3z", "3s5z", "3s5z_vs_3s6z"]),
    ("stalkers", ["stalker"], ["3s_vs_3z", "3s_vs_4z", "3s_vs_5z", "2s_vs_1sc"]),
    ("colossi_stalkers_zealots", ["colossus", "stalker", "zealot"], ["1c3s5z"]),
    ("zealots", ["zealot"], ["corridor", "so_many_baneling"]),
    ("hydralisks", ["hydralisk"], ["6h_vs_8z"]),
    ("bane", ["baneling", "zergling"], ["bane_vs_bane"]),
    ("colossus", ["colossus"], ["2c_vs_64zg"]),
]
# SMAC's arguments in SMAC's order, with its defaults.
ARGUMENTS = {
    "map_name": "8m", "step_mul": 8, "move_amount": 2, "difficulty": "7", "game_version": None,
    "seed": None, "continuing_episode": False, "obs_all_health": True, "obs_own_health": True,
    "obs_last_action": False, "obs_pathing_grid": False, "obs_terrain_height": False,
    "obs_instead_of_state": False, "obs_timestep_number": False, "state_last_action": True,
    "state_timestep_number": False, "reward_sparse": False, "reward_only_positive": True,
    "reward_death_value": 10, "reward_win": 200, "reward_defeat": 0, "reward_negative_scale": 0.5,
    "reward_scale": True, "reward_scale_rate": 20, "replay_dir": "", "replay_prefix": "",
    "window_size_x": 1920, "window_size_y": 1200, "heuristic_ai": False, "heuristic_rest": False,
    "debug": False,
}  # fmt: skip


def random_row(avail, rng):
    """A list of N random available actions."""
    return [int(rng.choice(np.flatnonzero(row))) for row in avail]


# ----------------------------------------------------------------------------- bad numbers

NAN, INF = float("nan"), float("inf")
BAD = [
    ("map_name", ["3m"]), ("map_name", None), ("n_envs", 2.5), ("n_envs", "2"), ("n_envs", True),
    ("n_envs", NAN), ("n_envs", 10**12), ("seed", 1.5), ("seed", None), ("seed", "1"),
    ("seed", True), ("step_mul", -1), ("step_mul", 0), ("step_mul", 8.0), ("step_mul", None),
    ("step_mul", 10**30), ("move_amount", NAN), ("move_amount", 0), ("move_amount", -2.0),
    ("move_amount", INF), ("move_amount", 1e300), ("move_amount", "2"), ("move_amount", True),
    ("reward_scale_rate", 0), ("reward_scale_rate", -20), ("reward_scale_rate", NAN),
    ("reward_win", INF), ("reward_win", np.ones((9, 9))), ("reward_win", -1000),
    ("reward_death_value", NAN), ("reward_death_value", 1e300), ("reward_defeat", None),
    ("reward_negative_scale", -INF), ("reward_scale", 20), ("obs_all_health", "yes"),
    ("obs_last_action", None), ("terrain", np.ones(32, bool)), ("terrain", np.full((9, 9), NAN)),
    ("terrain", np.zeros((32, 32), bool)), ("terrain", np.ones((500, 500), bool)), ("terrain", 3),
    ("terrain_height", np.full((32, 32), 256)), ("terrain_height", np.full((32, 32), NAN)),
    ("terrain_height", np.ones((31, 32), int)), ("terrain_height", 127),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_number_is_named_in_one_line(name, value):
    with pytest.raises(ValueError) as caught:
        BattleSim(**({"map_name": "3m"} | {name: value}))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    assert name.removesuffix("_name") in message


def test_numpys_numbers_are_numbers():
    sim = BattleSim("3m", np.int64(2), np.uint8(3), move_amount=np.float32(2), step_mul=np.int32(8))
    assert sim.state.tobytes() == BattleSim("3m", 2, 3, move_amount=2).state.tobytes()
    BattleSim("3m", obs_last_action=np.bool_(True), reward_win=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"episode_limit": 0}, "episode_limit"),
        ({"episode_limit": 60.5}, "episode_limit"),
        ({"ally": [["Marine", 0, 9, 16]]}, "number of units"),
        ({"enemy": [["Marine", -1, 23, 16], ["Marine", 3, 23, 16]]}, "number of units"),
        ({"enemy": [["Marine", 2.5, 23, 16]]}, "number of units"),
    ],
)
def test_a_map_with_bad_numbers_is_refused(monkeypatch, change, words):
    monkeypatch.setitem(MAPS, "mine", {**MAPS["3m"], **change})
    with pytest.raises(ValueError, match=f"map mine: .*{words}.* whole number above 0"):
        BattleSim("mine")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"battle": 0.5}, "battle must be"),
        ({"steps": -1}, "steps must be"),
        ({"steps": 1.5}, "steps must be"),
        ({"last_actions": [9, 0, 0]}, "last_actions must be from -1 to 8"),
        ({"last_actions": [10**12, 0, 0]}, "last_actions must be from -1 to 8"),
        ({"last_actions": [1, 1]}, "last_actions must be 3 integers"),
        ({"last_actions": [1.0, 1.0, 1.0]}, "last_actions must be 3 integers"),
        ({"ally": np.full((3, 6), NAN)}, "ally must be finite"),
        ({"enemy": np.full((3, 6), 32)}, "enemy must be finite numbers, and living units on"),
        ({"enemy": np.full((3, 6), -1) + np.eye(6)[2] * 9}, "living units on the map"),
    ],
)
def test_units_cannot_be_placed_where_there_is_no_map(change, words):
    sim, rows = BattleSim("3m"), np.full((3, 6), 16.0)
    with pytest.raises(ValueError, match=words):
        sim.place_units(**({"battle": 0, "ally": rows, "enemy": rows} | change))


# ------------------------------------------------------------------------ arguments and errors


def test_arguments_are_smacs_in_smacs_order():
    named = {
        name: parameter.default
        for name, parameter in inspect.signature(StarCraft2Env).parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    }
    assert list(named.items()) == list(ARGUMENTS.items())
    env = StarCraft2Env("3m", 4, 1.5, "1", None, 11)
    assert env.seed() == 11 and env._sim.world["step_mul"] == 4
    assert env._sim.world["move_amount"] == 1.5
    assert StarCraft2Env("3m", None).step_mul is None
    assert StarCraft2Env("3m", None)._sim.world["step_mul"] == 8


def test_arguments_become_attributes():
    given = dict(
        reward_scale=False, obs_last_action=True, debug=True, replay_dir="x", heuristic_rest=True
    )
    env, expected = StarCraft2Env("3m", **given), ARGUMENTS | given | {"map_name": "3m"}
    for name in expected.keys() - {"seed", "window_size_x", "window_size_y"}:
        assert getattr(env, name) == expected[name], name
    assert env.window_size == (1920, 1200)


def test_who_sees_all_health_sees_its_own():
    env = StarCraft2Env("3m", obs_own_health=False)
    assert env.obs_own_health is True and env.get_obs_size() == 30
    assert BattleSim("3m", obs_own_health=False).obs_dim == 30
    # smac: 4 + 3 x 4 + 2 x 4 + 0
    assert StarCraft2Env("3m", obs_own_health=False, obs_all_health=False).get_obs_size() == 24


def test_errors_are_smacs_and_ours():
    for error in (TypeError, ValueError):
        with pytest.raises(error, match="unknown option 'colour': choose from step_mul"):
            StarCraft2Env("3m", colour=1)
    for error in (KeyError, ValueError):
        with pytest.raises(error, match=r"^unknown map '4m': choose from 3m"):
            StarCraft2Env("4m")
    env = StarCraft2Env("3m")
    for error in (AssertionError, ValueError):
        with pytest.raises(error, match=r"agent 0 cannot perform action 0 \(available: \[1"):
            env.step([0, 1, 1])
    with pytest.raises(ValueError, match="heuristic_ai"):
        StarCraft2Env("3m", heuristic_ai=True)
    StarCraft2Env("3m", heuristic_rest=True)  # SMAC ignores it then


@pytest.mark.parametrize("name", ["render", "save_replay"])
def test_what_needs_the_game_warns_once(name):
    env = StarCraft2Env("3m")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        assert [getattr(env, name)() for _ in range(3)] == [None] * 3
    assert len(caught) == 1 and name in str(caught[0].message)


def test_render_gives_a_picture_of_the_battle_now():
    env = StarCraft2Env("3m", seed=1)
    before = env.render(mode="rgb_array")
    assert before.dtype == np.uint8 and before.ndim == 3 and before.shape[2] == 3
    env.reset()
    env.step([4, 4, 4])  # all go east
    assert (env.render("rgb_array") != before).any()


# --------------------------------------------------------------------------------- the names


@pytest.mark.parametrize("name", MAPS)
def test_smacs_names_for_a_map(name):
    """Against SMAC's registry of maps, and what its class said of the same map."""
    env, smac = StarCraft2Env(name), META["maps"][name]
    map_type, kinds = next(row[:2] for row in MAP_TYPES if name in row[2])
    assert isinstance(env, MultiAgentEnv) and env.map_type == map_type
    assert env.get_env_info() == smac["env_info"] and env.max_reward == smac["max_reward"]
    assert env.unit_type_bits == (len(kinds) if len(kinds) > 1 else 0)
    assert env.shield_bits_ally == ("shield" in smac["env_info"]["agent_features"])
    assert env.shield_bits_enemy == ("shield" in smac["env_info"]["enemy_features"])
    assert env.n_enemies == smac["env_info"]["n_actions"] - env.n_actions_no_attack
    assert [env.max_distance_x, env.max_distance_y] == smac["max_distance"]
    assert (env.map_x, env.map_y, env.n_actions_no_attack, env.n_actions_move) == (32, 32, 6, 4)
    assert env.get_ally_num_attributes() == len(smac["env_info"]["agent_features"])
    assert env.get_enemy_num_attributes() == len(smac["env_info"]["enemy_features"])
    lowest = min(unit.unit_type for unit in env.agents.values())
    for kind in KINDS:
        expected = lowest + kinds.index(kind) if kind in kinds else 0
        assert getattr(env, f"{kind}_id") == expected, kind
    type_ids = {TYPE_IDS[group[0]] for group in MAPS[name]["enemy"]}
    assert {unit.unit_type for unit in env.enemies.values()} == type_ids


OPTIONS = [
    {},
    {"obs_all_health": False},
    {"obs_all_health": False, "obs_own_health": False},
    {"obs_last_action": True, "obs_pathing_grid": True, "obs_terrain_height": True},
    {"obs_timestep_number": True, "state_timestep_number": True},
    {"obs_instead_of_state": True},
    {"state_last_action": False},
]


def after_20_steps(name, **options):
    env, rng = StarCraft2Env(name, seed=1, **options), np.random.default_rng(0)
    env.reset()
    for _ in range(20):
        env.step(random_row(env.get_avail_actions(), rng))
    return env


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["3m", "2s3z", "MMM"])
def test_the_parts_make_up_the_whole(name, options):
    env = after_20_steps(name, **options)
    (M, n_enemy), (n_others, n_ally) = env.get_obs_enemy_feats_size(), env.get_obs_ally_feats_size()
    rest = env.get_obs_move_feats_size() + env.get_obs_own_feats_size()
    assert rest + M * n_enemy + n_others * n_ally == env.get_obs_size() == len(env.get_obs()[0])
    parts = [np.ravel(part) for part in env.get_state_dict().values()]
    if env.obs_instead_of_state:
        assert env.get_state().tolist() == np.concatenate(env.get_obs()).tolist()
        env = after_20_steps(name)
    assert np.concatenate(parts).astype(np.float32).tolist() == env.get_state().tolist()


def test_units_by_hand():
    """A battle of MMM with numbers that can be followed."""
    env = StarCraft2Env("MMM", seed=1)
    ally = [[10, 10 + i, 45, 0, 0, 0] for i in range(10)]
    enemy = [[18.5, 10 + j, 45, 0, 0, 0] for j in range(10)]
    ally[0] = [12, 10, 100, 0, 0, 7]  # a Marauder
    ally[1] = [0, 0, 0, 0, 0, 0]  # dead
    ally[2] = [5, 5, 45, 0, 0, 0]  # would be seen from (0, 0)
    ally[9] = [10, 19, 150, 0, 120, 0]  # the Medivac
    env._sim.place_units(0, ally, enemy, last_actions=[6, 0] + [STOP] * 8, steps=3)
    unit, medivac = env.agents[0], env.get_unit_by_id(9)
    assert (unit.pos.x, unit.pos.y, unit.health, unit.health_max) == (12, 10, 100, 125)
    assert (unit.weapon_cooldown, unit.owner, unit.unit_type) == (7, 1, env.marauder_id)
    assert (medivac.energy, medivac.energy_max, medivac.unit_type) == (120, 200, env.medivac_id)
    assert env.agents[1].health == 0 and env.enemies[3].pos.y == 13 and env.enemies[0].owner == 2
    assert len({u.tag for u in (*env.agents.values(), *env.enemies.values())}) == 20
    assert env.get_unit_types()[:3] == [env.marauder_id, env.marauder_id, env.marine_id]
    assert env.get_unit_types()[10:] == [48] * 7 + [51] * 2 + [54]
    assert env.unit_max_cooldown(unit) == 25 and env.unit_max_cooldown(medivac) == 200
    assert env.get_unit_type_id(medivac, True) == 2
    assert [env.get_unit_type_id(env.enemies[j], False) for j in (0, 7, 9)] == [1, 0, 2]
    assert env.unit_max_shield(unit) is None
    assert env.last_action.shape == (10, 16) and env.last_action.argmax(1)[:3].tolist() == [6, 0, 1]
    assert env.death_tracker_ally.tolist() == [0, 1] + [0] * 8 and not env.death_tracker_enemy.any()
    parts = env.get_state_dict()
    np.testing.assert_allclose(parts["allies"][0], [0.8, 7 / 25, -4 / 32, -6 / 32, 1, 0, 0])
    np.testing.assert_allclose(parts["allies"][9], [1, 0.6, -6 / 32, 3 / 32, 0, 0, 1])
    assert not parts["allies"][1].any() and parts["enemies"].shape == (10, 6)
    # 8.5 cells away: seen straight ahead and one row off; the Marauder, 6.5 away, sees up to 6 rows
    sees = env.get_visibility_matrix()
    assert sees[0, 10:].tolist() == [True] * 7 + [False] * 3
    assert sees[5, 10:].tolist() == [j in (3, 4, 5, 6, 7) for j in range(10)]
    assert not sees[1].any() and not sees[:, 1].any() and not sees.diagonal().any()
    assert (sees[:, :10] == sees[:, :10].T).all() and sees[3, 4]
    assert env.unit_shoot_range(0) == 6 and env.unit_sight_range(0) == 9
    assert env.pathing_grid.shape == env.terrain_height.shape == (32, 32)
    assert env.pathing_grid.dtype == bool and env.terrain_height[0, 0] == 127 / 255
    top = unit._replace(pos=SimpleNamespace(x=16, y=31.5))
    assert not env.can_move(top, 0) and env.can_move(top, 1) == env.pathing_grid[16, 30]


def test_what_a_step_leaves_behind():
    env = StarCraft2Env("3m")
    env.reset()
    assert env.previous_ally_units is None and not env.last_action.any()
    rows = np.array([[10, 12, 45, 0, 0, 0], [10, 16, 45, 0, 0, 0], [10, 20, 45, 0, 0, 0]])
    env._sim.place_units(0, rows, rows + np.eye(6)[0] * 15)  # 15 cells further east
    before = env.agents
    reward, _, _ = env.step([2, 3, STOP])
    assert env.reward == reward and env.last_action.argmax(1).tolist() == [2, 3, 1]
    assert env.previous_ally_units == before and env.previous_enemy_units[0].pos == (25, 12)
    moved = [env.agents[i].pos.y - before[i].pos.y for i in range(3)]
    assert moved[0] > 0.5 and moved[1] < -0.5 and moved[2] == 0
    env._sim.place_units(0, rows, rows + np.eye(6)[0] * 4)
    reward, _, _ = env.step([6, 7, 8])  # three shots of 6, of at most 3 x 55 + 200, scaled to 20
    assert env.reward == reward == pytest.approx(18 / (365 / 20))


def test_full_restart_begins_anew_with_its_seed():
    """SMAC's PettingZoo wrapper seeds the game in this way."""
    envs, seen = [StarCraft2Env("3m", seed=s) for s in (1, 2)], []
    envs[1]._seed = 1
    envs[1].full_restart()
    assert envs[1].get_stats()["restarts"] == 1
    for env in envs:
        env.reset()
        over = False
        while not over:  # eastward, into the enemies
            rows = env.get_avail_actions()
            over = env.step([4 if row[4] else int(np.argmax(row)) for row in rows])[1]
        seen.append(env.get_state().tolist())
    assert seen[0] == seen[1]


def test_this_folder_alone_is_enough(tmp_path):
    """Copied elsewhere, with nothing of the project on the path, it plays an episode."""
    here = Path(__file__).parent
    shutil.copytree(here, tmp_path / here.name, ignore=shutil.ignore_patterns("__pycache__"))
    program = f"""
import sys
from {here.name}.simulator import StarCraft2Env, MultiAgentEnv
env = StarCraft2Env("3m", seed=1)
env.reset()
while not env.step([max(a for a in range(9) if row[a]) for row in env.get_avail_actions()])[1]:
    pass
assert sys.modules[{here.name!r}].__file__.startswith({str(tmp_path)!r})
assert "torch" not in sys.modules
print(env.get_stats()["battles_game"])
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout) == (0, "1\n"), ran.stderr


# ------------------------------------------------------- SMAC's own class, fed with our units

# SMAC's steps on the way through its own step(), and what only its heuristic and viewer use.
LEFT_OUT = {
    "init_units", "update_units", "get_agent_action", "get_agent_action_heuristic", "reward_battle",
    "only_medivac_left", "win_counted", "defeat_counted", "get_surrounding_points",
    "get_surrounding_pathing", "get_surrounding_height",
}  # fmt: skip
UNLIKE = {
    "agents",
    "enemies",
    "previous_ally_units",
    "previous_enemy_units",
}  # protobuf's, not ours
SIZES_OFF = {"get_obs_size", "get_obs_own_feats_size", "get_env_info", "get_state_size"}


def fed_smac(env, **options):
    """SMAC's unmodified class, the game below it replaced by the units of `env`."""
    smac = pytest.importorskip("smac.env", reason="SMAC is not installed")

    class Game:
        """What SMAC asks of pysc2's controller."""

        def observe(self):
            units = [
                SimpleNamespace(**unit._asdict())
                for unit in (*env.agents.values(), *env.enemies.values())
                if unit.health > 0
            ]
            raw = SimpleNamespace(units=units)
            return SimpleNamespace(observation=SimpleNamespace(raw_data=raw))

        def step(self, loops):
            pass

        actions = debug = step

    class FedSMAC(smac.StarCraft2Env):
        def _launch(self):
            self._controller = Game()
            for name in ("map_x", "map_y", "max_distance_x", "max_distance_y"):
                setattr(self, name, getattr(env, name))
            self.pathing_grid, self.terrain_height = env.pathing_grid, env.terrain_height

    return FedSMAC(env.map_name, seed=env.seed(), **options)


def compare(mine, theirs, timestep):
    """Every public name of SMAC's class: the same value, or the same answer without arguments."""
    for name in set(dir(theirs)) - LEFT_OUT - UNLIKE:
        if name.startswith("_") or name in {"close", "render", "save_replay", "reset"}:
            continue
        if name == "full_restart" or (timestep and name in SIZES_OFF):
            continue
        a, b = getattr(mine, name), getattr(theirs, name)
        if callable(b):
            if name == "get_stats" and not theirs.battles_game:  # SMAC divides by that
                continue
            wanted = inspect.signature(b).parameters
            if wanted.keys() - {"agent_id"}:
                continue
            calls = range(theirs.n_agents) if wanted else [None]
            a, b = ([f(i) if wanted else f() for i in calls] for f in (a, b))
        if timestep and name.startswith("get_obs"):  # SMAC's are float64 then, but for the time
            a, b = (np.float32(value) for value in (a, b))  # they hold float32's numbers
        np.testing.assert_equal(a, b, err_msg=name)
    for i, unit in theirs.agents.items():
        for question in ("unit_max_cooldown", "unit_max_shield"):
            assert getattr(mine, question)(mine.agents[i]) == getattr(theirs, question)(unit)
        for direction in range(4 * (unit.health > 0)):  # SMAC has the dead where it last saw them
            assert mine.can_move(mine.agents[i], direction) == theirs.can_move(unit, direction)
    for attribute in ("health", "shield", "pos", "unit_type", "owner", "weapon_cooldown"):
        for ours, smacs in ((mine.agents, theirs.agents), (mine.enemies, theirs.enemies)):
            for i in range(len(smacs)):
                if ours[i].health > 0 or attribute == "health":
                    assert getattr(ours[i], attribute) == getattr(smacs[i], attribute)


QUICK = ("3m", "2s3z", "MMM2", "bane_vs_bane", "2s_vs_1sc")
SOME = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in MAPS]


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("options", [{}, OPTIONS[3] | {"reward_only_positive": False}], ids=str)
def test_smacs_own_class_says_the_same(name, options):
    mine, rng = StarCraft2Env(name, seed=3, **options), np.random.default_rng(0)
    theirs = fed_smac(mine, **options)
    for _ in range(2):
        mine.reset(), theirs.reset()
        over = False
        while not over:
            compare(mine, theirs, "obs_timestep_number" in options)
            actions = random_row(mine.get_avail_actions(), rng)
            answer = mine.step(actions)
            assert answer == theirs.step(list(actions))
            over = answer[1]
        compare(mine, theirs, "obs_timestep_number" in options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_smacs_own_class_says_the_same_by_option(options):
    test_smacs_own_class_says_the_same("2s3z", options)
