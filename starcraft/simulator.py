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
import time

import numpy as np
from numba import get_num_threads, njit, prange

from . import Step
from .battle import begin, play
from .interface import Options, judge, observe, world_dtype
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
THREADS = get_num_threads()
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
        if map_name not in MAPS:
            raise ValueError(f"unknown map {map_name!r}: choose from {', '.join(MAPS)}")
        if unknown := set(options) - set(Options._fields):
            raise ValueError(
                f"unknown option {min(unknown)!r}: choose from {', '.join(Options._fields)}"
            )
        if n_envs < 1 or not 0 <= seed < 2**63:
            raise ValueError(f"n_envs must be >= 1 and 0 <= seed < 2**63, not {n_envs} and {seed}")
        self.options = options = Options(**options)
        self.map_name, self.n_envs, self.balance = map_name, n_envs, balance
        self.version = f"simulator, {balance} balance"
        self._facts = unit_facts(balance)
        self._kind_names = list(self._facts)
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
        if THREADS > 1 and self.units.size >= WORTH_THREADS:
            self._kernel = run_at_once
        # Write into these arrays, never put others in their places: the kernel is given these.
        shown = [getattr(self, name) for name in self._SHOWN]
        self._arrays = self.units, self._worlds, self.book, *shown
        self.reset()

    def _build_world(self, game_map, terrain, terrain_height):
        """The world record of a map, in an array of one."""
        walkable, with_cliffs = read_terrain(game_map["terrain"] if terrain is None else terrain)
        worlds = np.zeros(1, world_dtype(*walkable.shape))
        world = worlds[0]
        world["walkable"], world["with_cliffs"] = walkable, with_cliffs
        world["max_distance"] = walkable.shape
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
            kind["enemy_bit"] = enemy_order.index(name) if name in enemy_order else 0
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

        Those of units that are not there, on other terrain or in an altered map, are left out.
        """
        units, variants = self._template, self.world["variants"]
        variants[:, 0] = -1
        rows = iter(variants)
        for side, name, (x, y), share, moved_to in game_map.get("start_variants", ()):
            there = (np.hypot(units["x"] - x, units["y"] - y) < 0.01) & (
                units["kind"] == self._kind_names.index(name)
            )
            for unit in np.flatnonzero(there & (units["side"] == (side == "enemy"))):
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
            raise ValueError(
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

        Afterwards obs[battle], state[battle] and avail_actions[battle] show the placed units.
        Raises ValueError for wrong shapes, unknown unit names and battles that are not there.
        """
        if not 0 <= battle < self.n_envs:
            raise ValueError(f"battle must be from 0 to {self.n_envs - 1}, not {battle}")
        units = self._template.copy()
        sides = (
            ("ally", ally, ally_types, units[: self.n_agents]),
            ("enemy", enemy, enemy_types, units[self.n_agents :]),
        )
        for side, rows, names, part in sides:
            rows = np.asarray(rows, np.float64)
            if rows.shape != (len(part), 6):
                raise ValueError(f"{side} must have shape {(len(part), 6)}, not {rows.shape}")
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
        self.last_actions[battle] = -1 if last_actions is None else last_actions
        book = self.book[battle]
        book["clock"], book["steps"], book["terminated"], book["truncated"] = 0, steps, 0, 0
        self._run(np.where(np.arange(self.n_envs) == battle, SHOW, SKIP), self.last_actions)

    def state_dict(self):
        """Copies of every array the battles depend on, as plain numbers, for a bit-exact resume."""
        saved = {"units": self.units.view(np.uint8), "book": self.book.view(np.uint8)}
        saved |= {name: getattr(self, name) for name in self._SHOWN}
        return {name: array.copy() for name, array in saved.items()}

    def load_state_dict(self, saved):
        """Go on from a state_dict() of the same map, options and number of battles."""
        self.units[...] = np.ascontiguousarray(saved["units"]).view(UNIT)
        self.book[...] = np.ascontiguousarray(saved["book"]).view(BOOK)
        for name in self._SHOWN:
            getattr(self, name)[...] = saved[name]

    def close(self):
        """Nothing to close."""


class StarCraft2Env:
    """Drop-in for `smac.env.StarCraft2Env`, one battle, no game: same arguments, same returns.

    Arguments of SMAC's that only StarCraft II understands (difficulty, game_version, replay_dir,
    window sizes, ...) are accepted and change nothing. heuristic_ai is not supported.
    """

    _IGNORED = (
        "difficulty", "game_version", "replay_dir", "replay_prefix", "window_size_x",
        "window_size_y", "debug",
    )  # fmt: skip

    def __init__(self, map_name="8m", seed=None, **options):
        if options.pop("heuristic_ai", False) or options.pop("heuristic_rest", False):
            raise ValueError("heuristic_ai: the simulator has no scripted allies, leave it out")
        options = {name: value for name, value in options.items() if name not in self._IGNORED}
        if options.get("step_mul", 0) is None:
            del options["step_mul"]
        self._seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._sim = BattleSim(map_name, 1, self._seed, **options)
        self.map_name = map_name
        self.n_agents, self.n_enemies = self._sim.n_agents, self._sim.n_enemies
        self.n_actions, self.episode_limit = self._sim.n_actions, self._sim.episode_limit
        self.max_reward = self._sim.max_reward
        self.battles_won = self.battles_game = self.timeouts = self.force_restarts = 0

    def reset(self):
        """Begin a battle. Returns get_obs(), get_state()."""
        self._sim.reset()
        return self.get_obs(), self.get_state()

    def step(self, actions):
        """actions: N ints. Returns reward (float), terminated (bool, time limit included), info."""
        step = self._sim.step(np.array([[int(action) for action in actions]]))
        units = self._sim.units[0]
        dead = units["health"] <= 0
        info = {
            "battle_won": bool(step.battle_won[0]),
            "dead_allies": int(dead[: self.n_agents].sum()),
            "dead_enemies": int(dead[self.n_agents :].sum()),
        }
        over = bool(step.terminated[0] or step.truncated[0])
        if step.truncated[0] and self._sim.options.continuing_episode:
            info["episode_limit"] = True
        self.battles_game += over
        self.battles_won += info["battle_won"]
        self.timeouts += bool(step.truncated[0])
        return float(self._sim.book["reward"][0]), over, info

    def get_obs(self):
        """List of N arrays (O,) float32."""
        return list(self._sim.obs[0].copy())

    def get_obs_agent(self, agent_id):
        """(O,) float32."""
        return self._sim.obs[0, agent_id].copy()

    def get_state(self):
        """(S,) float32."""
        return self._sim.state[0].copy()

    def get_avail_actions(self):
        """N lists of A zeros and ones."""
        return self._sim.avail_actions[0].astype(int).tolist()

    def get_avail_agent_actions(self, agent_id):
        """List of A zeros and ones."""
        return self._sim.avail_actions[0, agent_id].astype(int).tolist()

    def get_obs_size(self):
        """O."""
        return self._sim.obs_dim

    def get_state_size(self):
        """S."""
        return self._sim.state_dim

    def get_total_actions(self):
        """A."""
        return self.n_actions

    def get_env_info(self):
        """The sizes, under SMAC's names."""
        world = self._sim.world
        types = [f"type_{bit}" for bit in range(world["type_bits"])]
        ally = ["health", "energy/cooldown", "rel_x", "rel_y"] + ["shield"] * world["shield_ally"]
        enemy = ["health", "rel_x", "rel_y"] + ["shield"] * world["shield_enemy"]
        return {
            "state_shape": self._sim.state_dim,
            "obs_shape": self._sim.obs_dim,
            "n_actions": self.n_actions,
            "n_agents": self.n_agents,
            "episode_limit": self.episode_limit,
            "agent_features": ally + types,
            "enemy_features": enemy + types,
        }

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

    def seed(self):
        """The seed in use."""
        return self._seed

    def render(self, mode="human"):
        """Not available: the simulator draws nothing."""
        raise NotImplementedError("the simulator draws nothing")

    def save_replay(self):
        """Not available: replays are StarCraft II's."""
        raise NotImplementedError("the simulator writes no StarCraft II replays")

    def close(self):
        """Nothing to close."""


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
    if not (1 <= args.n_envs <= 10_000 and 0 < args.seconds < 3600):
        parser.error("--n-envs must be from 1 to 10000 and --seconds between 0 and 3600")
    sim, rng = BattleSim(args.map, args.n_envs), np.random.default_rng(0)
    sim.step(random_actions(sim.avail_actions, rng))  # compiles
    threads = THREADS if sim._kernel is run_at_once else 1
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
        steps, wins, episodes = (
            steps + args.n_envs,
            wins + step.battle_won.sum(),
            episodes + over.sum(),
        )
    print(
        f"{args.map}: {steps / stepping:,.0f} steps/s ({args.n_envs} battles, {threads} threads,"
        f" random actions chosen outside the clock), {episodes} episodes, {wins} won"
    )


if __name__ == "__main__":
    main()
