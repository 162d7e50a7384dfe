"""What the rules of a battle work on: units, weapons, maps and terrain as numba's records.

The facts are in `smac_maps.json`, which says where each comes from; here they become rows of KIND
(one per unit type), UNIT (one per unit of a battle) and BOOK (one per battle), routes and start
positions. SMAC: https://arxiv.org/abs/1902.04043
"""

import copy
import json
from pathlib import Path

import numpy as np
from numba import njit

from . import compiled  # noqa: F401 before anything is compiled

DATA = json.loads(Path(__file__).with_name("smac_maps.json").read_text())
MAPS = DATA["maps"]

LOOPS_PER_SECOND = 16
NO_OP, STOP, NORTH, SOUTH, EAST, WEST, FIRST_TARGET = range(7)  # SMAC's actions
HOLD, MOVE, ATTACK, AUTO = range(4)  # orders; on AUTO, enemies choose their own targets
STRAIGHT, NO_ROUTE = 8, 9  # entries of the route table that are not directions
GROUND, AIR = 1, 2
OVERLAP = 63 / 1024  # cells by which bodies may overlap
INTO_WALLS = 1 / 16  # cells by which a body may reach into a wall
LAYERS = {"Ground": 1, "Flying": 2, "Colossus": 4, "Structure": 8}
FLYING = LAYERS["Flying"]
VARIANTS = 4  # at most so many start positions of a map vary
DX = np.array([1, 1, 0, -1, -1, -1, 0, 1])  # the eight directions of the route table
DY = np.array([0, 1, 1, 1, 0, -1, -1, -1])
# Numba's options for functions that are called by others here, and for kernels, called from Python.
# Without _nrt numba does not count at every call who holds an array: that took a sixth of the time.
# So no rule may make an array, list or set: numba then says "NRT required" or "Only accept
# returning of array passed into the function". A rule that makes one needs JIT without _nrt=False.
JIT = dict(error_model="numpy", _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)
KERNEL = JIT | {"no_cpython_wrapper": False, "cache": True}

KIND = np.dtype(  # one row per unit type; distances in cells, times in game loops
    [(name, np.float64) for name in (
        "health", "shield", "armor", "health_regen", "shield_regen", "shield_delay",
        "energy", "energy_max", "energy_regen", "speed", "acceleration",
        "radius",  # ranges of weapons count from it; the game's `radius`
        "body",  # what collides; the game's `separation_radius`
        "margin",  # from its middle to a wall
        "damage", "bonus_light", "bonus_armored", "range", "slop", "scan", "period",
        "damage_point", "backswing", "missile_speed", "flight", "burn", "second_hit",
        "line_length", "line_width", "blast_radius", "heal_rate", "heal_cost", "heal_range",
        "heal_scan", "heal_min_energy", "cooldown_max")]
    + [(name, np.int64) for name in (
        "hits",
        "layers",  # a bit of LAYERS: units of one layer collide
        "seen_as", "weapon",  # bits GROUND and AIR: what it is, and what it can hit
        "light", "armored", "biological", "threatens",
        "walks_cliffs", "suicide", "fires_at_will", "ally_bit", "enemy_bit")]
)  # fmt: skip

UNIT = np.dtype(  # one row per unit of a battle; health 0 = dead
    [(name, np.float64) for name in (
        "x", "y", "body", "health", "radius", "shield", "energy", "cooldown",
        "speed",  # cells per loop, now
        "unhurt",  # loops since the last damage
        "windup",  # loops until the raised weapon hits or fires; -1 = not raised
        "recovers",  # loops for which it does not walk after a shot
        "flight",  # loops until the shot (or second hit) lands; -1 = none under way
        "goal_x", "goal_y",
        "heading_x", "heading_y",  # the direction in which it walked last; 0, 0 = it stood
        "before")]  # health + shield at the start of the step
    + [(name, np.int64) for name in (
        "layers", "kind", "order",
        "target", "flight_target",  # -1 = none
        "side",  # 0: ally, 1: enemy
        "detour",  # it is going round something, turning left (1) or right (-1); 0 = straight on
        "hunts",  # ordered to attack units, wherever they are
        "exploding", "counted_dead")]
)  # fmt: skip


def unit_facts(balance="ladder"):
    """The `units` of smac_maps.json: balance "ladder" (the game's) or "liberty" (the maps' own)."""
    if balance not in ("liberty", "ladder"):
        raise ValueError(f"unknown balance {balance!r}: choose liberty or ladder")
    facts = copy.deepcopy(DATA["units"])
    if balance == "ladder":
        for name, changes in DATA["ladder_4_10"].items():
            for field, value in changes.items():
                *group, leaf = field.split(".")
                (facts[name][group[0]] if group else facts[name])[leaf] = value
    return facts


def kind_table(facts, names):
    """KIND rows for the unit types `names`, in that order (seconds become game loops)."""
    kinds = np.zeros(len(names), KIND)
    for kind, name in zip(kinds, names, strict=True):
        fact = facts[name]
        weapon, heal = fact.get("weapon", {}), fact.get("heal", {})
        energy, splash = fact.get("energy", {}), weapon.get("splash", {})
        for field in ("health", "shield", "armor", "radius"):
            kind[field] = fact[field]
        kind["body"] = fact["separation_radius"]
        kind["margin"] = fact["inner_radius"] - INTO_WALLS  # from its middle to a wall, at least
        kind["health_regen"] = fact.get("health_regen", 0) / LOOPS_PER_SECOND
        kind["shield_regen"] = fact.get("shield_regen", 0) / LOOPS_PER_SECOND
        kind["shield_delay"] = fact.get("shield_regen_delay", 0) * LOOPS_PER_SECOND
        kind["energy"], kind["energy_max"] = energy.get("start", 0), energy.get("max", 0)
        kind["energy_regen"] = energy.get("regen_per_s", 0) / LOOPS_PER_SECOND
        kind["speed"] = fact["speed"] / LOOPS_PER_SECOND
        kind["acceleration"] = fact.get("acceleration", 1000) / LOOPS_PER_SECOND**2
        kind["damage"], kind["range"] = weapon.get("damage", 0), weapon.get("range", 0)
        kind["bonus_light"] = weapon.get("bonus", {}).get("Light", 0)
        kind["bonus_armored"] = weapon.get("bonus", {}).get("Armored", 0)
        kind["slop"] = weapon.get("range_slop", 0)
        rooted = fact["speed"] == 0  # who cannot walk looks as far as its weapon reaches
        kind["scan"] = kind["range"] if rooted else weapon.get("min_scan_range", 0)
        kind["period"] = weapon.get("period", 0) * LOOPS_PER_SECOND
        kind["damage_point"] = weapon.get("damage_point", 0) * LOOPS_PER_SECOND
        kind["backswing"] = weapon.get("backswing", 0) * LOOPS_PER_SECOND
        kind["missile_speed"] = weapon.get("missile_speed", 0) / LOOPS_PER_SECOND
        kind["flight"] = weapon.get("flight_time", 0) * LOOPS_PER_SECOND
        kind["burn"] = weapon.get("burn", 0) * LOOPS_PER_SECOND
        kind["second_hit"] = weapon.get("second_hit_delay", 0) * LOOPS_PER_SECOND
        kind["hits"] = 1 if kind["second_hit"] else weapon.get("hits", 0)
        kind["line_length"] = splash.get("length", 0)
        kind["line_width"] = splash.get("thickness", 0)
        kind["blast_radius"] = splash.get("radius", 0)
        kind["suicide"] = weapon.get("suicide", False)
        kind["fires_at_will"] = weapon.get("fires_at_will", False)
        kind["weapon"] = sum({"ground": GROUND, "air": AIR}[t] for t in weapon.get("targets", ()))
        seen_as = fact.get("targetable_as", [fact["plane"]])
        kind["seen_as"] = sum({"ground": GROUND, "air": AIR}[t] for t in seen_as)
        kind["layers"] = sum(LAYERS[layer] for layer in fact["collides_with"])
        for field in ("light", "armored", "biological"):
            kind[field] = field.title() in fact["attributes"]
        kind["threatens"] = bool(weapon) or fact.get("always_threatens", False)
        kind["walks_cliffs"] = fact.get("walks_cliffs", False)
        kind["heal_rate"] = heal.get("health_per_s", 0) / LOOPS_PER_SECOND
        kind["heal_cost"] = heal.get("energy_per_health", 0)
        kind["heal_range"], kind["heal_scan"] = heal.get("range", 0), heal.get("scan_range", 0)
        kind["heal_min_energy"] = heal.get("min_energy", 0)
        kind["cooldown_max"] = fact.get("smac_cooldown_max", 1)
    return kinds


def read_terrain(terrain):
    """(walkable, walkable for a Colossus), each (X, Y) bool indexed [x, y].

    terrain: a name in smac_maps.json, or an (X, Y) array, True = walkable.
    """
    if not isinstance(terrain, str):
        walkable = np.ascontiguousarray(terrain, dtype=np.bool_)
        return walkable, walkable
    if terrain not in DATA["terrains"]:
        raise ValueError(f"unknown terrain {terrain!r}: choose from {', '.join(DATA['terrains'])}")
    data = DATA["terrains"][terrain]
    rows = np.array([[cell == "1" for cell in row] for row in data["open"]])  # (Y, X), north first
    walkable = np.ascontiguousarray(rows[::-1].T)  # (X, Y), south first
    with_cliffs = walkable.copy()
    if cliff := data.get("cliff_cells"):
        (x0, x1), (y0, y1) = cliff["x"], cliff["y"]
        with_cliffs[x0 : x1 + 1, y0 : y1 + 1] = True
    return walkable, with_cliffs


@njit(error_model="numpy", cache=True)  # it makes an array, hence not KERNEL
def fill_routes(walkable, route):
    """route[goal cell, cell]: STRAIGHT where the way is clear, else the direction (0-7) to go.

    Cells are numbered x * Y + y. A breadth-first search from every goal; diagonal steps
    must not cut a corner. The straight way is sampled every quarter of a cell.
    """
    X, Y = walkable.shape
    queue = np.empty(X * Y, np.int64)
    for goal in range(X * Y):
        for cell in range(X * Y):
            route[goal, cell] = NO_ROUTE
        if not walkable[goal // Y, goal % Y]:
            continue
        route[goal, goal] = STRAIGHT
        queue[0], head, tail = goal, 0, 1
        while head < tail:
            x, y = queue[head] // Y, queue[head] % Y
            head += 1
            for turn in range(8):
                direction = turn // 4 + turn % 4 * 2  # straight neighbours before diagonal ones
                nx, ny = x - DX[direction], y - DY[direction]  # from there, `direction` leads here
                if not (0 <= nx < X and 0 <= ny < Y and walkable[nx, ny]):
                    continue
                if not (walkable[nx, y] and walkable[x, ny]):
                    continue
                if route[goal, nx * Y + ny] == NO_ROUTE:
                    route[goal, nx * Y + ny] = direction
                    queue[tail] = nx * Y + ny
                    tail += 1
        for cell in range(X * Y):
            if route[goal, cell] < STRAIGHT:
                dx, dy = goal // Y - cell // Y, goal % Y - cell % Y
                samples = 4 * max(abs(dx), abs(dy))
                clear = True
                for k in range(samples):
                    x = cell // Y + 0.5 + dx * k / samples
                    y = cell % Y + 0.5 + dy * k / samples
                    for corner in range(4):  # some room to each side, so as not to graze corners
                        side_x, side_y = x - 0.3 + 0.6 * (corner % 2), y - 0.3 + 0.6 * (corner // 2)
                        clear = clear and walkable[int(side_x), int(side_y)]
                if clear:
                    route[goal, cell] = STRAIGHT


def grid_places(step):
    """Places round a point, nearest first, on a square grid of width `step`: yields (dx, dy).

    Places at the same distance come in turns of four: south, east, north, west.
    """
    yield 0.0, 0.0
    size = 24
    corners = [(n * n + k * k, k, n) for n in range(1, size) for k in range(n + 1)]
    for _, k, n in sorted(corners):
        for x, y in [(k, -n)] + [(n, -k)] * (0 < k < n):
            for _ in range(4):
                yield step * x, step * y
                x, y = -y, x


def spawn_spots(groups, facts, walkable):
    """(count, 2) start positions: StarCraft II's rule, in the order of creation.

    Every unit takes the first free place of a grid as wide as its radius; bodies may overlap by
    OVERLAP. The eight places next to the point need not be free: there a unit is pushed out of
    the others, the last one created first, by up to its radius. Found in the recordings: see
    `start_positions` in real_game.json.
    """
    placed = []  # x, y, radius, layers
    for name, count, x0, y0 in groups:
        radius = facts[name]["radius"]
        layers = sum(LAYERS[layer] for layer in facts[name]["collides_with"])
        for _ in range(count):
            rivals = [other for other in reversed(placed) if layers & other[3]]
            for k, (dx, dy) in enumerate(grid_places(radius)):
                x, y = x0 + dx, y0 + dy
                for other_x, other_y, other_radius, _ in rivals if 0 < k < 9 else ():
                    far, reach = np.hypot(x - other_x, y - other_y), radius + other_radius - OVERLAP
                    if 0 < far < reach:
                        x = other_x + (x - other_x) * reach / far
                        y = other_y + (y - other_y) * reach / far
                free = all(
                    np.hypot(x - other[0], y - other[1]) >= radius + other[2] - OVERLAP - 1e-9
                    for other in rivals
                )
                pushed = np.hypot(x - x0 - dx, y - y0 - dy)
                inside = 0 <= x < walkable.shape[0] and 0 <= y < walkable.shape[1]
                if free and pushed <= radius and inside and walkable[int(x), int(y)]:
                    placed.append((x, y, radius, layers))
                    break
            else:
                raise ValueError(f"no room to place {count} {name} around ({x0}, {y0})")
    return np.array([spot[:2] for spot in placed])


def world_fields(X, Y):
    """Fields of the record of what does not change during a battle, for a map of X x Y cells.

    One record, because numba passes a record between functions as a single pointer.
    """
    return [
        ("n_allies", np.int64),
        ("n_enemies", np.int64),
        ("step_mul", np.int64),
        ("move_amount", np.float64),
        ("goals", np.float64, (2, 2)),  # ends of the line on which the enemy's attack-move ends
        ("variants", np.float64, (VARIANTS, 4)),  # unit, share of the battles, x, y; see begin
        ("kinds", KIND, (len(DATA["units"]),)),
        ("walkable", np.uint8, (X, Y)),
        ("with_cliffs", np.uint8, (X, Y)),  # for units that walk cliffs
        ("route", np.uint8, (X * Y, X * Y)),  # see fill_routes; not filled in on open ground
        ("open_ground", np.uint8),  # no straight way ever meets a wall
    ]


BOOK = np.dtype(  # one row per battle
    [("rng", np.uint64), ("clock", np.int64), ("steps", np.int64), ("reward", np.float64)]
    + [(name, np.uint8) for name in ("terminated", "truncated", "battle_won")]
)
