"""Many battles at once, exactly as SMAC shows them, without StarCraft II.

The rules of the game are in `battle.py`, its maps and units in `maps.py` and `smac_maps.json`, what
SMAC (Samvelyan et al. 2019, https://arxiv.org/abs/1902.04043) shows of a battle in `interface.py`:
the same numbers that the `smac` package returns. The battles themselves are alike, not identical:
results on this simulator are not SMAC results.

    sim = BattleSim("2s3z", n_envs=64, seed=1)          # many battles, for training (see envs.py)
    env = StarCraft2Env(map_name="2s3z", seed=1)        # drop-in for smac.env.StarCraft2Env
    python -m starcraft.simulator --map 2s3z --n-envs 64    # random play: how fast is it here?

A map of your own, in a few lines (rows: unit, how many, x, y of the point they spawn around):

    ally, enemy = [["Marine", 4, 9, 16]], [["Zealot", 2, 23, 16]]
    MAPS["4m_vs_2z"] = {**MAPS["3m"], "ally": ally, "enemy": enemy}
    sim = BattleSim("4m_vs_2z")

With several types of ally, "agent_unit_order" lists them in the order of the agents (and of their
type bits), and "enemy_type_order" the enemies' type bits ([] or left out: no type bits).

Shape legend: E battles, N allied units (the agents), M enemy units, A = 6 + M actions,
O observation size, S state size.
"""

import argparse
import gc
import math
import time
import warnings
from functools import partial
from typing import NamedTuple

import numpy as np
from numba import get_num_threads, njit, prange

from . import Step
from .battle import begin, play
from .interface import (
    SHOOT_RANGE,
    SIGHT_RANGE,
    Options,
    brief,
    check_options,
    is_whole,
    judge,
    observe,
    observe_state,
    world_dtype,
)
from .maps import (
    AUTO,
    BOOK,
    FIRST_TARGET,
    HOLD,
    JIT,
    KERNEL,
    MAPS,
    UNIT,
    fill_routes,
    kind_table,
    read_terrain,
    spawn_spots,
    unit_facts,
)

gc.freeze()  # what is imported stays: numba compiles a tenth sooner if none of it is walked over

SEED_STRIDE = 0x632BE59BD9B4E019  # odd, so that different seeds start different streams
WORTH_THREADS = 512  # from so many units in all battles on, they are shared out among threads
SKIP, BEGIN, PLAY, SHOW = range(4)  # what is to be done in a battle, see run_battle


@njit(**JIT)
def first_illegal(todo, actions, avail):
    """battle * N + agent of the first action to be played that is not available, or -1."""
    E, N, A = avail.shape
    for b in range(E):
        if todo[b] == PLAY:
            for i in range(N):
                if not (0 <= actions[b, i] < A and avail[b, i, actions[b, i]]):
                    return b * N + i
    return -1


@njit(**JIT)
def run_battle(todo, actions, units, world, book, last_actions, obs, state, avail):
    """Do in one battle what `todo` says: BEGIN with these units, PLAY a step, SHOW it, or SKIP."""
    if todo == BEGIN:
        begin(units, world, book)
        for i in range(world.n_allies):
            last_actions[i] = -1
    elif todo == PLAY:
        play(units, actions, world, book)
        for i in range(world.n_allies):
            last_actions[i] = actions[i]
        book.steps += 1
        judge(units, world, book)
    if todo != SKIP:
        observe(units, world, book.steps, last_actions, obs, state, avail)


# The two ways to run all battles, by one thread or by all. Without threads they compile in two
# thirds of the time; 32 battles of 2s3z would save 0.1 ms a step, next to nothing beside learning.


@njit(**KERNEL)
def run_in_turn(todo, actions, units, worlds, book, last_actions, obs, state, avail):
    """run_battle for every battle, unless an action is illegal: returns first_illegal's value.

    `worlds` is the world in an array of one, because numba cannot hand a record alone to threads.
    """
    illegal = first_illegal(todo, actions, avail)
    if illegal < 0:
        for b in range(len(todo)):
            run_battle(
                *(todo[b], actions[b], units[b], worlds[0], book[b]),
                *(last_actions[b], obs[b], state[b], avail[b]),
            )
    return illegal


@njit(parallel=True, **KERNEL)
def run_at_once(todo, actions, units, worlds, book, last_actions, obs, state, avail):
    """The same as run_in_turn, the battles shared out among all threads."""
    illegal = first_illegal(todo, actions, avail)
    if illegal < 0:
        for b in prange(len(todo)):
            run_battle(
                *(todo[b], actions[b], units[b], worlds[0], book[b]),
                *(last_actions[b], obs[b], state[b], avail[b]),
            )
    return illegal


class UnknownMapError(KeyError, ValueError):
    """SMAC raises a KeyError."""

    __str__ = Exception.__str__  # KeyError's shows its text in quotes


class UnknownOptionError(TypeError, ValueError):
    """SMAC raises a TypeError."""


class UnavailableActionError(AssertionError, ValueError):
    """SMAC raises an AssertionError."""


def check_arguments(map_name, n_envs, seed, options):
    """ValueError, in one line, for arguments of BattleSim that it cannot work with."""
    if not (isinstance(map_name, str) and map_name in MAPS):
        raise UnknownMapError(f"unknown map {brief(map_name)}: choose from {', '.join(MAPS)}")
    if unknown := set(options) - set(Options._fields):
        raise UnknownOptionError(
            f"unknown option {min(unknown)!r}: choose from {', '.join(Options._fields)}"
        )
    if not is_whole(n_envs, 1, 10**6):
        raise ValueError(f"n_envs must be a whole number from 1 to 1000000, not {brief(n_envs)}")
    if not is_whole(seed, 0, 2**63 - 1):
        raise ValueError(f"seed must be a whole number from 0 to 2**63 - 1, not {brief(seed)}")
    game_map = MAPS[map_name]
    for name in ("agent_unit_order", "ally", "enemy", "enemy_order", "episode_limit"):
        if name not in game_map or game_map[name] == []:
            raise ValueError(f"map {map_name}: {name} is missing")
    for name, value in [("episode_limit", game_map["episode_limit"])] + [
        (f"the number of units in {group}", group[1])
        for group in game_map["ally"] + game_map["enemy"]
    ]:
        if not is_whole(value, 1, 10**6):
            raise ValueError(
                f"map {map_name}: {name} must be a whole number above 0, not {brief(value)}"
            )


def check_terrain(terrain, terrain_height):
    """ValueError, in one line, for arrays that are no terrain."""
    if terrain is not None and not isinstance(terrain, str):
        cells = np.asarray(terrain)
        if cells.ndim != 2 or cells.dtype.kind not in "biu" or max(cells.shape) > 128:
            raise ValueError(
                "terrain must be a name or a bool array of at most 128 x 128 cells,"
                f" not {cells.dtype} of shape {cells.shape}"
            )
        if not cells.any():
            raise ValueError("terrain has no walkable cell")
    if terrain_height is not None:
        heights = np.asarray(terrain_height)
        if heights.dtype.kind not in "iu" or heights.min(initial=0) < 0 or heights.max() > 255:
            raise ValueError("terrain_height must hold whole numbers from 0 to 255")


class BattleSim:
    """E battles of one SMAC map on the vector-environment contract (see envs.py).

    Args:
        map_name: a key of MAPS.
        n_envs: number of battles E; they are independent, and battle b is seeded with seed + b.
        seed: non-negative integer.
        balance: "ladder", the figures of patch 4.10, as in the game, or "liberty", the maps' own.
        terrain: instead of the map's own: a name, or an (X, Y) bool array, True = walkable.
        terrain_height: (X, Y) uint8, used by obs_terrain_height only. The real maps' heights are
            not known here: 127 everywhere by default.
        **options: SMAC's constructor options, see Options.

    After construction, reset and step, `obs` (E, N, O) float32, `state` (E, S) float32 and
    `avail_actions` (E, N, A) bool hold what is seen now; the next step overwrites them.
    Raises ValueError (one line) for unknown names and bad numbers.
    """

    name = "sim"
    _SHOWN = ("last_actions", "obs", "state", "avail_actions")

    def __init__(
        self, map_name, n_envs=1, seed=0, *, balance="ladder", terrain=None, terrain_height=None,
        **options,
    ):  # fmt: skip
        check_arguments(map_name, n_envs, seed, options)
        check_terrain(terrain, terrain_height)
        self.options = options = Options(**options)
        check_options(options)
        if options.obs_all_health:  # as in SMAC, an agent then sees its own health too
            self.options = options = options._replace(obs_own_health=True)
        self.map_name, self.n_envs, self.balance = map_name, n_envs, balance
        self.version = f"simulator, {balance} balance"
        self._facts = unit_facts(balance)
        self._kind_names = list(self._facts)
        self.type_names = [name.removesuffix("_RL") for name in self._facts]  # of world["kinds"]
        game_map = MAPS[map_name]
        self._worlds = self._build_world(game_map, terrain, terrain_height)
        self.world = self._worlds[0]
        self._template = np.concatenate(
            [self._spawn(game_map, "ally"), self._spawn(game_map, "enemy")]
        )
        self._set_variants(game_map)

        self.n_agents, self.n_enemies = int(self.world["n_allies"]), int(self.world["n_enemies"])
        self.n_actions = FIRST_TARGET + self.n_enemies
        self.episode_limit = game_map["episode_limit"]
        enemies = self._template[self.n_agents :]
        self.max_reward = float(
            self.n_enemies * options.reward_death_value
            + options.reward_win
            + enemies["health"].sum()
            + enemies["shield"].sum()
        )
        if options.reward_scale and self.max_reward <= 0:
            raise ValueError(
                f"the highest return of a battle is {self.max_reward:g}, but reward_scale divides"
                " by it: choose reward_win and reward_death_value so that it is above 0"
            )
        self.world["max_reward"] = self.max_reward
        self.obs_dim, self.state_dim = self._sizes()

        E, N, A = n_envs, self.n_agents, self.n_actions
        self.units = np.tile(self._template, (E, 1))  # (E, N + M) UNIT
        self.book = np.zeros(E, BOOK)  # (E,) BOOK
        self.book["rng"] = (np.arange(E, dtype=np.uint64) + np.uint64(seed)) * np.uint64(
            SEED_STRIDE
        )
        self.last_actions = np.full((E, N), -1, np.int64)
        self.obs = np.zeros((E, N, self.obs_dim), np.float32)
        self.state = np.zeros((E, self.state_dim), np.float32)
        if options.obs_instead_of_state:
            self.state = self.obs.reshape(E, self.state_dim)  # (E, N, O) -> (E, N * O), a view
        self.avail_actions = np.zeros((E, N, A), np.bool_)
        self._all_play = np.full(E, PLAY)
        self._kernel = run_in_turn
        if get_num_threads() > 1 and self.units.size >= WORTH_THREADS:
            self._kernel = run_at_once
        # Write into these arrays, never put others in their places: the kernel is given these.
        shown = [getattr(self, name) for name in self._SHOWN]
        self._arrays = self.units, self._worlds, self.book, *shown
        self.reset()

    def _build_world(self, game_map, terrain, terrain_height):
        """The world record of a map, in an array of one."""
        terrain = game_map.get("terrain", "none") if terrain is None else terrain
        walkable, with_cliffs = read_terrain(terrain)
        worlds = np.zeros(1, world_dtype(*walkable.shape))
        world = worlds[0]
        world["walkable"], world["with_cliffs"] = walkable, with_cliffs
        world["max_distance"] = walkable.shape
        if terrain_height is not None and np.shape(terrain_height) != walkable.shape:
            raise ValueError(
                f"terrain_height must have shape {walkable.shape}, not {np.shape(terrain_height)}"
            )
        world["height"] = 127 if terrain_height is None else terrain_height
        xs, ys = np.nonzero(walkable)  # open ground: the walkable cells are a rectangle
        world["open_ground"] = walkable[xs.min() : xs.max() + 1, ys.min() : ys.max() + 1].all()
        if not world["open_ground"]:
            fill_routes(walkable, world["route"])
        world["kinds"] = kind_table(self._facts, self._kind_names)
        agent_order = game_map["agent_unit_order"]
        enemy_order = game_map.get("enemy_type_order", [])
        allies, enemies = ({group[0] for group in game_map[side]} for side in ("ally", "enemy"))
        if unknown := (allies | enemies) - set(self._kind_names):
            known = ", ".join(self._kind_names)
            raise ValueError(f"unknown unit {min(unknown)!r}: choose from {known}")
        if missing := allies - set(agent_order):
            raise ValueError(f"agent_unit_order lacks {min(missing)!r}")
        if enemy_order and (enemies - set(enemy_order) or len(agent_order) > len(enemy_order)):
            raise ValueError(
                "enemy_type_order must list every type of enemy, and not fewer types than"
                " agent_unit_order: both sides share the type bits"
            )
        for kind, name in zip(world["kinds"], self._kind_names, strict=True):
            allied = name.removesuffix("_RL")
            kind["ally_bit"] = agent_order.index(allied) if allied in agent_order else 0
            kind["enemy_bit"] = enemy_order.index(allied) if allied in enemy_order else 0
        for count, shield, side in (
            ("n_allies", "shield_ally", "ally"),
            ("n_enemies", "shield_enemy", "enemy"),
        ):
            world[count] = sum(group[1] for group in game_map[side])
            world[shield] = self._facts[game_map[side][0][0]]["race"] == "Protoss"
        world["type_bits"] = len(enemy_order)
        world["medivacs"] = "Medivac" in agent_order
        world["episode_limit"] = game_map["episode_limit"]
        goals = game_map["enemy_order"].get("attack_move", [[-1.0, -1.0]])
        world["goals"] = goals[0], goals[-1]
        for name, value in self.options._asdict().items():
            world[name] = value
        return worlds

    def _spawn(self, game_map, side):
        """Fresh UNIT rows of one side at their start positions, in SMAC's order."""
        groups = game_map[side]
        spots = spawn_spots(groups, self._facts, self.world["walkable"])
        names = [name for name, count, _, _ in groups for _ in range(count)]
        order = list(range(len(names)))
        if side == "ally":  # SMAC numbers agents by unit type, then x, then y
            rank = game_map["agent_unit_order"].index
            order.sort(key=lambda k: (rank(names[k]), *spots[k]))
        units = self._fresh_units([names[k] for k in order], spots[order], side)
        if side == "enemy":
            units["hunts"] = game_map["enemy_order"].get("attack_units", False)
        return units

    def _set_variants(self, game_map):
        """Fill in the start positions that vary from battle to battle, see begin.

        Left out, on other terrain or in an altered map: those of units that are not there, and
        those that are not on the ground.
        """
        units, variants = self._template, self.world["variants"]
        if len(game_map.get("start_variants", ())) > len(variants):
            raise ValueError(f"start_variants: at most {len(variants)} positions may vary")
        ground = {tuple(cell) for cell in np.argwhere(self.world["walkable"])}
        variants[:, 0] = -1
        rows = iter(variants)
        for side, name, (x, y), share, moved_to in game_map.get("start_variants", ()):
            there = (np.hypot(units["x"] - x, units["y"] - y) < 0.01) & (
                units["kind"] == self._kind_names.index(name)
            )
            there &= (units["side"] == (side == "enemy")) & (tuple(map(int, moved_to)) in ground)
            for unit in np.flatnonzero(there):
                next(rows)[:] = unit, share, *moved_to

    def _fresh_units(self, names, spots, side):
        """UNIT rows in full health for the unit types `names` at spots (n, 2)."""
        units = np.zeros(len(names), UNIT)
        if side == "ally":  # where the maps' own allied unit differs from the ladder's
            names = [f"{name}_RL" if f"{name}_RL" in self._facts else name for name in names]
        units["kind"] = [self._kind_names.index(name) for name in names]
        units["x"], units["y"] = spots.T
        kinds = self.world["kinds"][units["kind"]]
        for field in ("health", "shield", "energy", "body", "radius", "layers"):
            units[field] = kinds[field]
        units["order"], units["side"] = (HOLD, 0) if side == "ally" else (AUTO, 1)
        for field in ("target", "windup", "flight", "goal_x", "goal_y"):
            units[field] = -1
        return units

    def _sizes(self):
        """(O, S) for the map and options."""
        world, options, N, M = self.world, self.options, self.n_agents, self.n_enemies
        shield_ally, shield_enemy = int(world["shield_ally"]), int(world["shield_enemy"])
        bits = int(world["type_bits"])
        seen = 4 + bits + options.obs_all_health
        ally = (
            seen + options.obs_all_health * shield_ally + options.obs_last_action * self.n_actions
        )
        enemy = seen + options.obs_all_health * shield_enemy
        own = bits + options.obs_own_health * (1 + shield_ally)
        move = 4 + 8 * options.obs_pathing_grid + 9 * options.obs_terrain_height
        # SMAC leaves an empty column in the own part before the time that it appends
        obs_dim = move + M * enemy + (N - 1) * ally + own + 2 * options.obs_timestep_number
        if options.obs_instead_of_state:
            return obs_dim, obs_dim * N
        state_dim = N * (4 + shield_ally + bits) + M * (3 + shield_enemy + bits)
        state_dim += options.state_last_action * N * self.n_actions
        return obs_dim, state_dim + options.state_timestep_number

    def _run(self, todo, actions):
        """todo: SKIP, BEGIN, PLAY or SHOW for each battle, (E,). actions (E, N) are for PLAY."""
        return self._kernel(todo, actions, *self._arrays)

    def reset(self, mask=None):
        """Begin new battles where mask (E,) bool is True (everywhere if None).

        Raises ValueError for a mask of another shape.
        """
        mask = np.ones(self.n_envs, np.bool_) if mask is None else np.asarray(mask, np.bool_)
        if mask.shape != (self.n_envs,):
            raise ValueError(f"mask must have shape {(self.n_envs,)}, not {mask.shape}")
        self.units.view(np.uint8)[mask] = self._template.view(np.uint8)  # bytes: 3 x sooner
        self._run(np.where(mask, BEGIN, SKIP), self.last_actions)

    def step(self, actions):
        """Play one step of every battle.

        Args:
            actions: (E, N) integers, each available to its agent.

        Returns a Step. Raises ValueError, naming environment, agent and action, for actions of a
        wrong shape or type or not available, and for battles that are over and not yet reset.
        """
        actions = np.asarray(actions)
        if actions.shape != (self.n_envs, self.n_agents) or actions.dtype.kind not in "iu":
            raise ValueError(
                f"actions must be integers of shape {(self.n_envs, self.n_agents)}, "
                f"not {actions.dtype} of shape {actions.shape}"
            )
        over = self.book["terminated"] | self.book["truncated"]
        if over.any():
            raise ValueError(f"environment {over.argmax()}: the battle is over, reset it first")
        actions = np.array(actions, np.int64, order="C")  # else numba compiles again
        illegal = self._run(self._all_play, actions)
        if illegal >= 0:
            b, i = divmod(illegal, self.n_agents)
            raise UnavailableActionError(
                f"environment {b}: agent {i} cannot perform action {actions[b, i]} "
                f"(available: {np.flatnonzero(self.avail_actions[b, i]).tolist()})"
            )
        return Step(
            reward=self.book["reward"].astype(np.float32),
            terminated=self.book["terminated"].astype(np.bool_),
            truncated=self.book["truncated"].astype(np.bool_),
            battle_won=self.book["battle_won"].astype(np.bool_),
            aborted=np.zeros(self.n_envs, np.bool_),
        )

    def place_units(
        self, battle, ally, enemy, *, ally_types=None, enemy_types=None, last_actions=None, steps=0
    ):
        """Put the units of one battle where you want them (golden tests, custom scenarios).

        Args:
            battle: index of the battle.
            ally, enemy: (N, 6) and (M, 6) rows x, y, health, shield, energy, weapon cooldown (game
                loops); health 0 = dead.
            ally_types, enemy_types: N and M unit names; the map's own if None.
            last_actions: (N,) what the agents did last; None as after a reset.
            steps: steps of the episode gone by.

        Afterwards obs[battle], state[battle] and avail_actions[battle] show the placed units. The
        enemies have no goal: they stand until they see somebody, but those of 2c_vs_64zg hunt.
        Raises ValueError for wrong shapes, unknown unit names and battles that are not there.
        """
        if not is_whole(battle, 0, self.n_envs - 1):
            raise ValueError(f"battle must be from 0 to {self.n_envs - 1}, not {brief(battle)}")
        if not is_whole(steps, 0, 10**6):
            raise ValueError(f"steps must be a whole number from 0 to 1000000, not {brief(steps)}")
        last = np.full(self.n_agents, -1) if last_actions is None else np.asarray(last_actions)
        if last.shape != (self.n_agents,) or last.dtype.kind not in "iu":
            raise ValueError(f"last_actions must be {self.n_agents} integers")
        if not ((last >= -1) & (last < self.n_actions)).all():
            raise ValueError(f"last_actions must be from -1 to {self.n_actions - 1}")
        units = self._template.copy()
        sides = (
            ("ally", ally, ally_types, units[: self.n_agents]),
            ("enemy", enemy, enemy_types, units[self.n_agents :]),
        )
        for side, rows, names, part in sides:
            rows = np.asarray(rows, np.float64)
            if rows.shape != (len(part), 6):
                raise ValueError(f"{side} must have shape {(len(part), 6)}, not {rows.shape}")
            inside = (rows[:, :2] >= 0) & (rows[:, :2] < self.world["walkable"].shape)
            if not np.isfinite(rows).all() or not inside[rows[:, 2] > 0].all():
                raise ValueError(f"{side} must be finite numbers, and living units on the map")
            if names is not None:
                if len(names) != len(part) or not set(names) <= set(self._kind_names):
                    raise ValueError(
                        f"{side}_types must be {len(part)} of {', '.join(self._kind_names)}"
                    )
                hunts = part["hunts"].copy()
                part[:] = self._fresh_units(names, rows[:, :2], side)
                part["hunts"] = hunts
            alive = rows[:, 2] > 0
            for column, field in enumerate(("x", "y", "health", "shield", "energy", "cooldown")):
                part[field] = np.where(alive, rows[:, column], 0.0)
        units["counted_dead"] = units["health"] <= 0
        units["before"] = units["health"] + units["shield"]
        self.units[battle] = units
        self.last_actions[battle] = last
        book = self.book[battle]
        book["clock"], book["steps"], book["terminated"], book["truncated"] = 0, steps, 0, 0
        self._run(np.where(np.arange(self.n_envs) == battle, SHOW, SKIP), self.last_actions)

    def state_dict(self):
        """Copies of every array the battles depend on, as plain numbers, for a bit-exact resume."""
        saved = {"units": self.units.view(np.uint8), "book": self.book.view(np.uint8)}
        saved |= {"last_actions": self.last_actions}
        return {name: array.copy() for name, array in saved.items()}

    def load_state_dict(self, saved):
        """Go on from a state_dict() of the same map, options and number of battles.

        Raises ValueError, one line, for any other: the compiled rules use many of these numbers as
        indices, and must not be given wrong ones.
        """
        for name, mine in self.state_dict().items():
            if saved[name].shape != mine.shape or saved[name].dtype != mine.dtype:
                raise ValueError(f"saved {name} are not those of {len(self.units)} such battles")
        units = np.ascontiguousarray(saved["units"]).view(UNIT)  # (E, N + M)
        book = np.ascontiguousarray(saved["book"]).view(BOOK)  # (E,)
        X, Y = self.world["walkable"].shape
        last, side = units.shape[1] - 1, self._template["side"]
        limits = {
            "x": (0, np.nextafter(X, 0)),
            "y": (0, np.nextafter(Y, 0)),
            "kind": (0, len(self._kind_names) - 1),
            "order": (HOLD, AUTO),
            "target": (-1, last),
            "flight_target": (-1, last),
            "side": (side, side),
            "detour": (-1, 1),
        }
        sane = all(np.isfinite(units[name]).all() for name in UNIT.names)
        for name, (low, high) in limits.items():
            sane = sane and ((units[name] >= low) & (units[name] <= high)).all()
        for name, high in (("steps", self.episode_limit), ("clock", 2**62)):
            sane = sane and ((book[name] >= 0) & (book[name] <= high)).all()
        for name in ("terminated", "truncated", "battle_won"):
            sane = sane and (book[name] <= 1).all()
        actions = saved["last_actions"]
        if not sane or actions.min() < -1 or actions.max() >= self.n_actions:
            raise ValueError("the saved battles have numbers that no battle can have")
        self.units[...], self.book[...], self.last_actions[...] = units, book, actions
        self._run(np.full(self.n_envs, SHOW), self.last_actions)

    def close(self):
        """Nothing to close."""


class Position(NamedTuple):
    """Where a unit is, in cells."""

    x: float
    y: float


class Unit(NamedTuple):
    """A unit as it is now, under the names that StarCraft II and SMAC give these facts."""

    tag: int  # its number in the battle, from 1 on
    unit_type: int
    owner: int  # 1: ally, 2: enemy
    pos: Position
    radius: float  # cells
    health: float  # 0 = dead
    health_max: float
    shield: float
    shield_max: float
    energy: float
    energy_max: float
    weapon_cooldown: float  # game loops


# StarCraft II's numbers of the unit types. SMAC's maps bring allied types of their own, numbered in
# the order of the agents from somewhere above the game's own on; only their differences matter.
TYPE_IDS = {
    "Colossus": 4, "Baneling": 9, "Marine": 48, "Marauder": 51, "Medivac": 54, "Zealot": 73,
    "Stalker": 74, "SpineCrawler": 98, "Zergling": 105, "Hydralisk": 107,
}  # fmt: skip
FIRST_ALLY_TYPE = 2000
MAP_TYPES = {  # SMAC's names for which types the agents have
    ("Marine",): "marines",
    ("Stalker",): "stalkers",
    ("Zealot",): "zealots",
    ("Hydralisk",): "hydralisks",
    ("Colossus",): "colossus",
    ("Baneling", "Zergling"): "bane",
    ("Stalker", "Zealot"): "stalkers_and_zealots",
    ("Colossus", "Stalker", "Zealot"): "colossi_stalkers_zealots",
    ("Marauder", "Marine", "Medivac"): "MMM",
}


class MultiAgentEnv:
    """SMAC's base class of environments, from which PyMARL wants to import it."""

    def get_env_info(self):
        """The sizes that a learner needs."""
        return {
            "state_shape": self.get_state_size(),
            "obs_shape": self.get_obs_size(),
            "n_actions": self.get_total_actions(),
            "n_agents": self.n_agents,
            "episode_limit": self.episode_limit,
        }


class StarCraft2Env(MultiAgentEnv):
    """Drop-in for `smac.env.StarCraft2Env`: one battle, no game, the same names and numbers.

    Arguments are SMAC's, in SMAC's order, and become attributes as in SMAC. Those that only
    StarCraft II understands (difficulty, game_version, replay_dir, window sizes, debug) change
    nothing. `simulator`: balance, terrain, terrain_height of BattleSim.

    What differs: with obs_timestep_number the sizes are those of what is returned (SMAC's are one
    too small); render draws for rgb_array only, and save_replay only warns; get_stats can be asked
    before the first battle has ended; units are there before the first reset; death trackers count
    with reward_sparse, too. Not there: the parts of SMAC's own step (init_units, update_units,
    get_agent_action, reward_battle, ...), for no method here calls them.

    Raises ValueErrors in one line, which are also what SMAC raises: KeyError for an unknown map,
    TypeError for an unknown option, AssertionError for an action that is not available.
    """

    def __init__(
        self, map_name="8m", step_mul=8, move_amount=2, difficulty="7", game_version=None,
        seed=None, continuing_episode=False, obs_all_health=True, obs_own_health=True,
        obs_last_action=False, obs_pathing_grid=False, obs_terrain_height=False,
        obs_instead_of_state=False, obs_timestep_number=False, state_last_action=True,
        state_timestep_number=False, reward_sparse=False, reward_only_positive=True,
        reward_death_value=10, reward_win=200, reward_defeat=0, reward_negative_scale=0.5,
        reward_scale=True, reward_scale_rate=20, replay_dir="", replay_prefix="",
        window_size_x=1920, window_size_y=1200, heuristic_ai=False, heuristic_rest=False,
        debug=False, **simulator,
    ):  # fmt: skip
        given = locals().copy()
        if heuristic_ai:
            raise ValueError("heuristic_ai: the simulator has no scripted allies, leave it out")
        options = {name: given[name] for name in Options._fields if name in given}  # SMAC's
        if step_mul is None:  # the map's own
            options["step_mul"] = 8
        self._seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._make_sim = partial(BattleSim, map_name, 1, **options, **simulator)
        self._sim = self._make_sim(seed=self._seed)
        for name in set(given) - {"self", "simulator", "seed"}:  # seed is a method
            setattr(self, name, given[name])
        self.obs_own_health = self._sim.options.obs_own_health
        self.window_size = window_size_x, window_size_y
        self.n_agents, self.n_enemies = self._sim.n_agents, self._sim.n_enemies
        self.n_actions, self.episode_limit = self._sim.n_actions, self._sim.episode_limit
        self.n_actions_no_attack, self.n_actions_move = FIRST_TARGET, 4
        self.n_obs_pathing, self.n_obs_height = 8, 9
        self.max_reward, self.reward = self._sim.max_reward, 0
        self.battles_won = self.battles_game = self.timeouts = self.force_restarts = 0
        self.renderer = self.last_stats = self._before = None
        self._describe_map()

    def _describe_map(self):
        """Set the attributes that follow from the map."""
        world, order = self._sim.world, MAPS[self.map_name]["agent_unit_order"]
        self.map_type = MAP_TYPES.get(tuple(order), "_and_".join(order))
        self.map_x, self.map_y = world["walkable"].shape
        self.max_distance_x, self.max_distance_y = world["max_distance"]
        self.pathing_grid = world["walkable"].astype(bool)  # (X, Y)
        self.terrain_height = world["height"] / 255  # (X, Y)
        self.unit_type_bits = int(world["type_bits"])
        self.shield_bits_ally = int(world["shield_ally"])
        self.shield_bits_enemy = int(world["shield_enemy"])
        types = [f"type_{bit}" for bit in range(self.unit_type_bits)]
        self.ally_state_attr_names = (
            ["health", "energy/cooldown", "rel_x", "rel_y"]
            + ["shield"] * self.shield_bits_ally
            + types
        )
        self.enemy_state_attr_names = (
            ["health", "rel_x", "rel_y"] + ["shield"] * self.shield_bits_enemy + types
        )
        self._kinds = {}  # unit type -> its row of KIND
        for kind, name in zip(world["kinds"], self._sim.type_names, strict=True):
            own_type = FIRST_ALLY_TYPE + order.index(name) if name in order else 0  # 0: no agent's
            setattr(self, f"{name.lower()}_id", own_type)
            self._kinds |= {own_type: kind, TYPE_IDS[name]: kind}

    # ------------------------------------------------------------------------------ playing

    def reset(self):
        """Begin a battle. Returns get_obs(), get_state()."""
        self._before = None
        self._sim.reset()
        return self.get_obs(), self.get_state()

    def step(self, actions):
        """actions: N ints. Returns reward (float), terminated (bool, time limit included), info."""
        self._before = self._sim.units[0].copy()
        step = self._sim.step(np.array([[int(action) for action in actions]]))
        dead = self._sim.units[0]["health"] <= 0
        info = {
            "battle_won": bool(step.battle_won[0]),
            "dead_allies": int(dead[: self.n_agents].sum()),
            "dead_enemies": int(dead[self.n_agents :].sum()),
        }
        over = bool(step.terminated[0] or step.truncated[0])
        if step.truncated[0] and self.continuing_episode:
            info["episode_limit"] = True
        self.battles_game += over
        self.battles_won += info["battle_won"]
        self.timeouts += bool(step.truncated[0])
        self.reward = float(self._sim.book["reward"][0])
        return self.reward, over, info

    def full_restart(self):
        """Begin anew with the seed `_seed`, as if StarCraft II had been started again."""
        self._sim = self._make_sim(seed=self._seed)
        self.force_restarts += 1

    def seed(self):
        """The seed in use."""
        return self._seed

    def render(self, mode="human"):
        """mode "rgb_array": a picture, (H, W, 3) uint8. Any other warns: there is no window."""
        if mode == "rgb_array":
            from .draw import draw  # here, because only this needs Pillow

            return draw(self._sim.units[0], self._sim.world, self._sim.type_names)
        warnings.warn("render: only mode='rgb_array' shows something here", stacklevel=2)
        return None

    def save_replay(self):
        """Warns: replays are StarCraft II's."""
        warnings.warn("save_replay: the simulator has no StarCraft II replays", stacklevel=2)

    def close(self):
        """Nothing to close."""

    # ------------------------------------------------------------------------ what is shown

    def get_obs(self):
        """List of N arrays (O,) float32."""
        return list(self._sim.obs[0].copy())

    def get_obs_agent(self, agent_id):
        """(O,) float32."""
        return self._sim.obs[0, agent_id].copy()

    def get_state(self):
        """(S,) float32."""
        return self._sim.state[0].copy()

    def get_state_dict(self):
        """The state in parts: "allies" (N, attributes), "enemies" (M, attributes), float64.

        By option also "last_action" (N, A) and "timestep" (float).
        """
        steps, N, M = int(self._sim.book["steps"][0]), self.n_agents, self.n_enemies
        n_ally, n_enemy = self.get_ally_num_attributes(), self.get_enemy_num_attributes()
        row = np.zeros(N * n_ally + M * n_enemy + N * self.n_actions + 1)
        observe_state(self._sim.units[0], self._sim.world, steps, self._sim.last_actions[0], row)
        allies, enemies, _ = np.split(row, [N * n_ally, N * n_ally + M * n_enemy])
        parts = {"allies": allies.reshape(N, n_ally), "enemies": enemies.reshape(M, n_enemy)}
        if self.state_last_action:
            parts["last_action"] = self.last_action
        if self.state_timestep_number:
            parts["timestep"] = steps / self.episode_limit
        return parts

    def get_avail_actions(self):
        """N lists of A zeros and ones."""
        return self._sim.avail_actions[0].astype(int).tolist()

    def get_avail_agent_actions(self, agent_id):
        """List of A zeros and ones."""
        return self._sim.avail_actions[0, agent_id].astype(int).tolist()

    def get_visibility_matrix(self):
        """(N, N + M) bool: does this agent see that unit, allies first? Nobody sees itself."""
        units, N = self._sim.units[0], self.n_agents
        x, y, alive = units["x"], units["y"], units["health"] > 0
        near = np.hypot(x[:N, None] - x, y[:N, None] - y) < SIGHT_RANGE  # (N, N + M)
        return near & alive[:N, None] & alive & ~np.eye(N, N + self.n_enemies, dtype=bool)

    @property
    def last_action(self):
        """(N, A) float64: the agents' last actions one-hot, zeros before the first step."""
        return np.eye(self.n_actions + 1)[self._sim.last_actions[0], :-1]  # -1: the row cut short

    @property
    def death_tracker_ally(self):
        """(N,) float64, 1 = dead."""
        return self._sim.units[0]["counted_dead"][: self.n_agents].astype(float)

    @property
    def death_tracker_enemy(self):
        """(M,) float64, 1 = dead."""
        return self._sim.units[0]["counted_dead"][self.n_agents :].astype(float)

    def get_stats(self):
        """Battles played, won, drawn by the time limit."""
        return {
            "battles_won": self.battles_won,
            "battles_game": self.battles_game,
            "battles_draw": self.timeouts,
            "win_rate": self.battles_won / max(self.battles_game, 1),
            "timeouts": self.timeouts,
            "restarts": self.force_restarts,
        }

    # -------------------------------------------------------------------------------- sizes

    def get_obs_move_feats_size(self):
        """How much of an observation is about moving: it comes first."""
        by_option = 8 * self.obs_pathing_grid + 9 * self.obs_terrain_height
        return self.n_actions_move + by_option

    def get_obs_enemy_feats_size(self):
        """(M, numbers about each enemy): they come second."""
        health = self.obs_all_health * (1 + self.shield_bits_enemy)
        return self.n_enemies, 4 + health + self.unit_type_bits

    def get_obs_ally_feats_size(self):
        """(N - 1, numbers about each other ally): they come third."""
        health = self.obs_all_health * (1 + self.shield_bits_ally)
        last_action = self.obs_last_action * self.n_actions
        return self.n_agents - 1, 4 + health + self.unit_type_bits + last_action

    def get_obs_own_feats_size(self):
        """How much of an observation is about the agent itself: it comes last."""
        health = self.obs_own_health * (1 + self.shield_bits_ally)
        return health + self.unit_type_bits + 2 * self.obs_timestep_number

    def get_obs_size(self):
        """O."""
        return self._sim.obs_dim

    def get_state_size(self):
        """S."""
        return self._sim.state_dim

    def get_total_actions(self):
        """A."""
        return self.n_actions

    def get_ally_num_attributes(self):
        """How many numbers of the state are about each ally."""
        return len(self.ally_state_attr_names)

    def get_enemy_num_attributes(self):
        """How many numbers of the state are about each enemy."""
        return len(self.enemy_state_attr_names)

    def get_env_info(self):
        """The sizes, and the names of the state's numbers."""
        names = {
            "agent_features": self.ally_state_attr_names,
            "enemy_features": self.enemy_state_attr_names,
        }
        return super().get_env_info() | names

    # -------------------------------------------------------------------------------- units

    def _describe_units(self, rows):
        """{agent or enemy id: Unit} for the UNIT rows of both sides: allies, enemies."""
        sides = {}, {}
        for tag, row in enumerate(rows, 1):
            kind, side = self._sim.world["kinds"][row["kind"]], sides[row["side"]]
            unit_type = TYPE_IDS[self._sim.type_names[row["kind"]]]
            if row["side"] == 0:
                unit_type = FIRST_ALLY_TYPE + int(kind["ally_bit"])
            numbers = (
                *(row["health"], kind["health"], row["shield"], kind["shield"]),
                *(row["energy"], kind["energy_max"], max(row["cooldown"], 0)),
            )
            pos = Position(float(row["x"]), float(row["y"]))
            side[len(side)] = Unit(
                *(tag, unit_type, int(row["side"]) + 1, pos, float(kind["radius"])),
                *map(float, numbers),
            )
        return sides

    @property
    def agents(self):
        """{agent id: Unit}, now."""
        return self._describe_units(self._sim.units[0])[0]

    @property
    def enemies(self):
        """{enemy id: Unit}, now."""
        return self._describe_units(self._sim.units[0])[1]

    @property
    def previous_ally_units(self):
        """{agent id: Unit} before the last step; None before the first."""
        return self._before if self._before is None else self._describe_units(self._before)[0]

    @property
    def previous_enemy_units(self):
        """{enemy id: Unit} before the last step; None before the first."""
        return self._before if self._before is None else self._describe_units(self._before)[1]

    def get_unit_by_id(self, a_id):
        """The Unit of an agent."""
        return self.agents[a_id]

    def get_unit_types(self):
        """The unit types of all agents, then of all enemies."""
        allies, enemies = self._describe_units(self._sim.units[0])
        return [unit.unit_type for unit in (*allies.values(), *enemies.values())]

    def get_unit_type_id(self, unit, ally):
        """The place of a unit's type among the type bits of its side."""
        bit = self._kinds[unit.unit_type]["ally_bit" if ally else "enemy_bit"]
        return int(bit)

    def unit_max_shield(self, unit):
        """None for those that have none."""
        return float(self._kinds[unit.unit_type]["shield"]) or None

    def unit_max_cooldown(self, unit):
        """By what the state divides an agent's cooldown, or a Medivac's energy. SMAC: else 15."""
        kind = self._kinds[unit.unit_type]
        own = unit.unit_type >= FIRST_ALLY_TYPE
        return float(kind["energy_max"] or kind["cooldown_max"]) if own else 15

    def unit_shoot_range(self, agent_id):
        """Cells, centre to centre."""
        return SHOOT_RANGE

    def unit_sight_range(self, agent_id):
        """Cells, centre to centre."""
        return SIGHT_RANGE

    @staticmethod
    def distance(x1, y1, x2, y2):
        """Cells."""
        return math.hypot(x2 - x1, y2 - y1)

    def check_bounds(self, x, y):
        """Is this cell on the map?"""
        return 0 <= x < self.map_x and 0 <= y < self.map_y

    def can_move(self, unit, direction):
        """Could this unit move north (0), south (1), east (2) or west (3)?"""
        dx, dy = ((0, 1), (0, -1), (1, 0), (-1, 0))[direction]
        shift = self.move_amount / 2
        x, y = int(unit.pos.x + shift * dx), int(unit.pos.y + shift * dy)
        return self.check_bounds(x, y) and bool(self.pathing_grid[x, y])


def random_actions(avail_actions, rng):
    """(E, N) uniformly random available actions for avail_actions (E, N, A) bool."""
    noise = rng.random(avail_actions.shape, dtype=np.float32)
    return np.where(avail_actions, noise, -1.0).argmax(-1)


def main():
    parser = argparse.ArgumentParser(description="Random play: speed of the simulator here.")
    parser.add_argument("--map", default="2s3z", choices=MAPS, metavar="NAME", help="SMAC map")
    parser.add_argument("--n-envs", type=int, default=64, help="battles at once")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to measure")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")  # one line
    args = parser.parse_args()
    if not (1 <= args.n_envs <= 10_000 and 0.1 <= args.seconds <= 3600):
        parser.error("--n-envs must be from 1 to 10000 and --seconds from 0.1 to 3600")
    sim, rng = BattleSim(args.map, args.n_envs), np.random.default_rng(0)
    sim.step(random_actions(sim.avail_actions, rng))  # compiles
    threads = get_num_threads() if sim._kernel is run_at_once else 1
    steps, stepping, wins, episodes = 0, 0.0, 0, 0
    began = time.perf_counter()
    while time.perf_counter() - began < args.seconds:
        actions = random_actions(sim.avail_actions, rng)
        t0 = time.perf_counter()
        step = sim.step(actions)
        over = step.terminated | step.truncated
        if over.any():
            sim.reset(over)
        stepping += time.perf_counter() - t0
        steps += args.n_envs
        wins += step.battle_won.sum()
        episodes += over.sum()
    print(
        f"{args.map}: {steps / stepping:,.0f} steps/s ({args.n_envs} battles, {threads} threads,"
        f" random actions chosen outside the clock), {episodes} episodes, {wins} won"
    )


if __name__ == "__main__":
    main()
