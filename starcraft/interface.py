"""SMAC's interface to a battle: observations, state, action masks, rewards and ends of episodes.

The same numbers that the `smac` package returns (Samvelyan et al. 2019,
https://arxiv.org/abs/1902.04043), one battle at a time, compiled by numba.

Shapes: N allied units (the agents), M enemy units, A = 6 + M actions, O observation, S state.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from .battle import distance
from .maps import EAST, FIRST_TARGET, JIT, KERNEL, NO_OP, NORTH, SOUTH, STOP, WEST, world_fields

# The points round a unit that SMAC looks at, as multiples of move_amount; the last is its own.
AROUND_X = np.array([0, 0, 2, -2, 1, -1, 1, -1, 0])
AROUND_Y = np.array([2, -2, 0, 0, 1, -1, -1, 1, 0])
WON, LOST, DRAWN, GOES_ON = range(4)
SIGHT_RANGE, SHOOT_RANGE = 9.0, 6.0  # SMAC's, centre to centre, for every unit type


class Options(NamedTuple):
    """SMAC's constructor options, with SMAC's names, meanings and defaults."""

    step_mul: int = 8
    move_amount: float = 2.0
    continuing_episode: bool = False  # changes only StarCraft2Env's info, at the time limit
    obs_all_health: bool = True
    obs_own_health: bool = True
    obs_last_action: bool = False
    obs_pathing_grid: bool = False
    obs_terrain_height: bool = False
    obs_instead_of_state: bool = False
    obs_timestep_number: bool = False
    state_last_action: bool = True
    state_timestep_number: bool = False
    reward_sparse: bool = False
    reward_only_positive: bool = True
    reward_death_value: float = 10.0
    reward_win: float = 200.0
    reward_defeat: float = 0.0
    reward_negative_scale: float = 0.5
    reward_scale: bool = True
    reward_scale_rate: float = 20.0


RANGES = {"step_mul": (1, 1000), "move_amount": (0.01, 100), "reward_scale_rate": (1e-6, 1e6)}


def check_options(options):
    """ValueError, in one line, for an option of another type than its default's, or out of range.

    No range admits nan or infinity.
    """
    for name, default in Options._field_defaults.items():
        value = getattr(options, name)
        low, high = RANGES.get(name, (-1e6, 1e6))
        if isinstance(default, bool):
            good, allowed = isinstance(value, (bool, np.bool_)), "True or False"
        elif isinstance(default, int):
            good, allowed = is_whole(value, low, high), f"a whole number from {low} to {high}"
        else:
            number = isinstance(value, (int, float, np.integer, np.floating))
            good = number and not isinstance(value, bool) and low <= value <= high
            allowed = f"a number from {low:g} to {high:g}"
        if not good:
            raise ValueError(f"{name} must be {allowed}, not {brief(value)}")


def brief(value):
    """repr(value) in one short line, for messages."""
    return " ".join(repr(value).split())[:80]


def is_whole(value, low, high):
    """Is it an integer from low to high? True and False are not, whatever Python says."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return whole and low <= value <= high


def world_dtype(X, Y):
    """The record of everything constant: battle.py's fields, the map's layout, SMAC's options."""
    fields = world_fields(X, Y)
    known = {name for name, *_ in fields}
    fields += [
        ("episode_limit", np.int64),
        ("shield_ally", np.uint8),  # the side is Protoss: its rows carry a shield
        ("shield_enemy", np.uint8),
        ("type_bits", np.int64),
        ("medivacs", np.uint8),  # SMAC's MMM rules: a side with only Medivacs left has lost
        ("max_reward", np.float64),
        ("max_distance", np.float64, (2,)),  # the playable area's size, by which SMAC divides x, y
        ("height", np.uint8, (X, Y)),
    ]
    kinds = {bool: np.uint8, int: np.int64, float: np.float64}
    for name, default in Options._field_defaults.items():
        if name not in known:
            fields.append((name, kinds[type(default)]))
    return np.dtype(fields)


# ------------------------------------------------------- what SMAC computes, one battle at a time


@njit(**JIT)
def can_move(u, direction, walkable, shift):
    """SMAC's test for a move: is the cell `shift` = move_amount / 2 ahead walkable?"""
    x = int(u.x + shift * ((direction == EAST) - (direction == WEST)))
    y = int(u.y + shift * ((direction == NORTH) - (direction == SOUTH)))
    return 0 <= x < walkable.shape[0] and 0 <= y < walkable.shape[1] and walkable[x, y]


@njit(**JIT)
def available(i, units, world, avail):
    """Fill avail (A,) with SMAC's action mask of agent i."""
    u = units[i]
    for action in range(len(avail)):
        avail[action] = False
    if u.health <= 0:
        avail[NO_OP] = True
        return
    avail[STOP] = True
    for direction in range(NORTH, FIRST_TARGET):
        avail[direction] = can_move(u, direction, world.walkable, world.move_amount / 2)
    healer = world.kinds[u.kind].heal_rate > 0
    first = 0 if healer else world.n_allies
    for j in range(min(world.n_allies, world.n_enemies) if healer else world.n_enemies):
        v = units[first + j]
        if v.health > 0 and distance(u, v) <= SHOOT_RANGE:
            avail[FIRST_TARGET + j] = not (healer and world.kinds[v.kind].heal_rate > 0)


@njit(**JIT)
def put_health(v, world, shields, row, k):
    """Write health and, on a Protoss side, shield as shares; return the next column."""
    kind = world.kinds[v.kind]
    row[k] = v.health / kind.health
    if not shields:
        return k + 1
    row[k + 1] = v.shield / kind.shield if kind.shield > 0 else 0.0
    return k + 2


@njit(**JIT)
def put_type(bit, type_bits, row, k):
    """Write a unit type one-hot; return the next column."""
    if type_bits > 0:
        row[k + bit] = 1.0
    return k + type_bits


@njit(**JIT)
def put_surroundings(u, world, row, k):
    """Write what the options ask for, 8 pathing values and 9 heights, into a row of zeros, which it
    stays for the dead; return the next column."""
    reach = int(world.move_amount)
    X, Y = world.walkable.shape
    heights = k + 8 * world.obs_pathing_grid
    for point in range(9 if u.health > 0 else 0):
        x, y = int(u.x) + reach * AROUND_X[point], int(u.y) + reach * AROUND_Y[point]
        inside = 0 <= x < X and 0 <= y < Y
        if world.obs_pathing_grid and point < 8:
            row[k + point] = world.walkable[x, y] if inside else 1.0
        if world.obs_terrain_height:
            row[heights + point] = world.height[x, y] / 255 if inside else 1.0
    return heights + 9 * world.obs_terrain_height


@njit(**JIT)
def observe_agent(i, units, world, steps, last_actions, avail, row):
    """Fill row (O,) with SMAC's get_obs_agent(i): move | enemies | other allies | own."""
    u = units[i]
    for k in range(len(row)):
        row[k] = 0.0
    n_actions = FIRST_TARGET + world.n_enemies
    alive = u.health > 0
    if alive:
        for direction in range(NORTH, FIRST_TARGET):
            row[direction - NORTH] = avail[direction]
    k = put_surroundings(u, world, row, 4)
    for j in range(len(units)):
        j = (j + world.n_allies) % len(units)  # enemies first
        if j == i:
            continue
        v = units[j]
        ally = j < world.n_allies
        kind = world.kinds[v.kind]
        shields = world.shield_ally if ally else world.shield_enemy
        width = 4 + world.type_bits
        if world.obs_all_health:
            width += 1 + shields
        if ally and world.obs_last_action:
            width += n_actions
        far = distance(u, v)
        if alive and v.health > 0 and far < SIGHT_RANGE:
            row[k] = 1.0 if ally else avail[FIRST_TARGET + j - world.n_allies]
            row[k + 1] = far / SIGHT_RANGE
            row[k + 2] = (v.x - u.x) / SIGHT_RANGE
            row[k + 3] = (v.y - u.y) / SIGHT_RANGE
            column = k + 4
            if world.obs_all_health:
                column = put_health(v, world, shields, row, column)
            column = put_type(
                kind.ally_bit if ally else kind.enemy_bit, world.type_bits, row, column
            )
            if ally and world.obs_last_action and last_actions[j] >= 0:
                row[column + last_actions[j]] = 1.0
        k += width
    if alive:
        if world.obs_own_health:
            k = put_health(u, world, world.shield_ally, row, k)
        put_type(world.kinds[u.kind].ally_bit, world.type_bits, row, k)
    if world.obs_timestep_number:
        row[-1] = steps / world.episode_limit


@njit(**KERNEL)  # the drop-in class calls it
def observe_state(units, world, steps, last_actions, row):
    """Fill row (S,) with SMAC's get_state(): allies | enemies | last actions | time."""
    for k in range(len(row)):
        row[k] = 0.0
    X, Y = world.walkable.shape
    k = 0
    for j in range(len(units)):
        v = units[j]
        ally = j < world.n_allies
        kind = world.kinds[v.kind]
        shields = world.shield_ally if ally else world.shield_enemy
        if v.health > 0:
            row[k] = v.health / kind.health
            column = k + 1
            if ally:
                if kind.energy_max > 0:
                    row[column] = v.energy / kind.energy_max
                else:
                    row[column] = max(v.cooldown, 0.0) / kind.cooldown_max
                column += 1
            row[column] = (v.x - X / 2) / world.max_distance[0]
            row[column + 1] = (v.y - Y / 2) / world.max_distance[1]
            column += 2
            if shields:
                row[column] = v.shield / kind.shield if kind.shield > 0 else 0.0
                column += 1
            put_type(kind.ally_bit if ally else kind.enemy_bit, world.type_bits, row, column)
        k += 3 + ally + shields + world.type_bits
    if world.state_last_action:
        for i in range(world.n_allies):
            if last_actions[i] >= 0:
                row[k + last_actions[i]] = 1.0
            k += FIRST_TARGET + world.n_enemies
    if world.state_timestep_number:
        row[k] = steps / world.episode_limit


@njit(**JIT)
def observe(units, world, steps, last_actions, obs, state, avail):
    """Fill obs (N, O), state (S,) and avail (N, A) of one battle."""
    for i in range(world.n_allies):
        available(i, units, world, avail[i])
        observe_agent(i, units, world, steps, last_actions, avail[i], obs[i])
    if not world.obs_instead_of_state:  # else `state` is `obs`, seen flat
        observe_state(units, world, steps, last_actions, state)


@njit(**JIT)
def score(units, world):
    """SMAC's reward before the end bonus, and the outcome.

    Damage counts from `before`, the health + shield a step ago. SMAC takes the absolute value,
    so that enemies who regain more than they lose also give a positive reward.
    """
    ally_loss, enemy_loss, deaths = 0.0, 0.0, 0.0
    allies, enemies, ally_fighters, enemy_fighters = 0, 0, 0, 0
    for i in range(len(units)):
        u = units[i]
        if u.health > 0:
            fights = world.kinds[u.kind].heal_rate == 0
            allies += u.side == 0
            enemies += u.side == 1
            ally_fighters += fights and u.side == 0
            enemy_fighters += fights and u.side == 1
        if u.counted_dead:
            continue
        loss = u.before - (u.health + u.shield if u.health > 0 else 0.0)
        died = u.health <= 0
        u.counted_dead = died
        if u.side == 0:
            ally_loss += world.reward_negative_scale * loss
            if died and not world.reward_only_positive:
                deaths -= world.reward_negative_scale * world.reward_death_value
        else:
            enemy_loss += loss
            deaths += died * world.reward_death_value
    reward = abs(enemy_loss + deaths)
    if not world.reward_only_positive:
        reward = enemy_loss + deaths - ally_loss
    if world.reward_sparse:
        reward = 0.0
    if (allies == 0 and enemies > 0) or (world.medivacs and ally_fighters == 0):
        return reward, LOST
    if (allies > 0 and enemies == 0) or (world.medivacs and enemies == 1 and enemy_fighters == 0):
        return reward, WON
    return reward, DRAWN if enemies == 0 else GOES_ON


@njit(**KERNEL)  # the golden tests call it
def judge(units, world, book):
    """Write reward, terminated, truncated and battle_won of the step just played into book."""
    reward, outcome = score(units, world)
    if outcome == WON:
        reward = 1.0 if world.reward_sparse else reward + world.reward_win
    elif outcome == LOST:
        reward = -1.0 if world.reward_sparse else reward + world.reward_defeat
    if world.reward_scale:
        reward /= world.max_reward / world.reward_scale_rate
    book.reward = reward
    book.terminated = outcome != GOES_ON
    book.truncated = outcome == GOES_ON and book.steps >= world.episode_limit
    book.battle_won = outcome == WON
