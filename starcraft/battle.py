"""The rules of a battle: units, weapons, movement, targets, damage; one game loop at a time.

Units, weapons, maps and terrain are data, in `smac_maps.json`. Everything here works on one battle,
`units` (N + M,) UNIT records (allies first), compiled by numba; `simulator.py` plays many battles
at once and shows them as SMAC does (https://arxiv.org/abs/1902.04043). 16 loops are a second,
8 loops one environment step.

Find a rule: orders `give_orders` | targets `acquire`, `call_for_help` | attacking `fight`,
`release`, `strike`, `fire_at_will` | standing after a shot `live` (`recovers`) | damage `hurt` |
dying `die`, `explode` | healing `heal`, `seek_patient` | walking `advance` | walls `wall`,
`room_ahead`, `ground_near` | collision `blocked_headings`, `stands_firm`, `shorter_way_round`,
`push_apart` | start `begin`.
The figures (a weapon's range, a unit's speed) are in `smac_maps.json`.

Known differences from StarCraft II (measured: README.md): agents that live lose too much health, so
enemies hit too often or share out their fire too little; Colossi that step down a cliff among
Zerglings get away too easily. Units turn at once; both sweeps of a Colossus land together, on both
levels of a cliff, and a beam that is turned away spares all or nobody; Colossi seek no way round
walls; no Hydralisk melee attack; ways are not cut down to 1/4096 cell a loop.
"""

import numpy as np
from numba import njit

from .maps import (
    ATTACK,
    AUTO,
    DX,
    DY,
    EAST,
    FIRST_TARGET,
    FLYING,
    GROUND,
    HOLD,
    JIT,
    MOVE,
    NORTH,
    OVERLAP,
    SOUTH,
    STOP,
    STRAIGHT,
    WEST,
)

STAY = -1.0  # instead of a distance to walk up to
SCAN_EVERY, SCAN_AT = 4, 2  # enemies look as far as they see at loops 2, 6, 10, ...
INSIDE = 0.02  # how far into its range a unit walks, so that rounding cannot stop it short
CALL_RADIUS = 4.0  # game data (CallForHelp): friends so near help who is struck
LEASH = 21.0  # a chased target farther away than this is given up in any case
SAME_WAY = 0.9  # cosine of the angle up to which two units walk the same way
HEADINGS = 16  # directions that a blocked unit tries
HALF_TURN = HEADINGS // 2
COS = np.cos(np.arange(HEADINGS) * 2 * np.pi / HEADINGS)
SIN = np.sin(np.arange(HEADINGS) * 2 * np.pi / HEADINGS)


@njit(**JIT)
def uniform(book, low, high):
    """A random number in [low, high) from the battle's own generator (SplitMix64)."""
    book.rng += np.uint64(0x9E3779B97F4A7C15)
    z = book.rng
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return low + (high - low) * (np.float64(z >> np.uint64(11)) / 9007199254740992.0)


@njit(**JIT)
def distance(u, v):
    """Centre to centre."""
    return np.sqrt((v.x - u.x) ** 2 + (v.y - u.y) ** 2)


@njit(**JIT)
def opponents(u, units, world):
    """Indices of the other side's units."""
    if u.side == 0:
        return range(world.n_allies, len(units))
    return range(0, world.n_allies)


@njit(**JIT)
def wall(u, x, y, world):
    """True where the ground, or the map's edge, keeps unit u from standing at (x, y).

    Of a walker four points are looked at: its kind's `margin` west, east, south and north of there.
    A point on the line between two cells counts as in the one towards (x, y).
    """
    X, Y = world.walkable.shape
    kind = world.kinds[u.kind]
    if u.layers == FLYING:
        return not (0.0 <= x < X and 0.0 <= y < Y)
    west, east, south, north = x - kind.margin, x + kind.margin, y - kind.margin, y + kind.margin
    if west < 0.0 or east > X or south < 0.0 or north > Y:
        return True
    i, j, last_i, last_j = int(x), int(y), int(np.ceil(east)) - 1, int(np.ceil(north)) - 1
    ground = world.with_cliffs if kind.walks_cliffs else world.walkable
    beside = ground[int(west), j] and ground[last_i, j]
    return not (beside and ground[i, int(south)] and ground[i, last_j])


@njit(**JIT)
def room_ahead(u, hx, hy, far, world):
    """How far unit u can go along (hx, hy): `far`, or up to the wall in which that would end.

    Recorded: a unit sent into a wall comes to rest at it, and does not slide along it.
    """
    if not wall(u, u.x + far * hx, u.y + far * hy, world):
        return far
    free = 0.0
    for _ in range(16):  # bisection, to 1/32,768 of a cell
        middle = (free + far) / 2
        if wall(u, u.x + middle * hx, u.y + middle * hy, world):
            far = middle
        else:
            free = middle
    return free


@njit(**JIT)
def ground_near(x, y, world):
    """The walkable cell next to the point (x, y) that is nearest to it.

    So units go to that side of a cliff on whose edge a Colossus stands (recordings: battles of
    2c_vs_64zg last no longer where it does).
    """
    X, Y = world.walkable.shape
    best_i, best_j = min(max(int(x), 0), X - 1), min(max(int(y), 0), Y - 1)
    nearest = np.inf
    for i in range(max(int(x) - 1, 0), min(int(x) + 2, X)):
        for j in range(max(int(y) - 1, 0), min(int(y) + 2, Y)):
            dx, dy = max(i - x, x - i - 1.0, 0.0), max(j - y, y - j - 1.0, 0.0)
            if world.walkable[i, j] and dx * dx + dy * dy < nearest:
                nearest, best_i, best_j = dx * dx + dy * dy, i, j
    return best_i, best_j


@njit(**JIT)
def turned(hx, hy, k):
    """The heading (hx, hy), turned left by k * 22.5 degrees."""
    return hx * COS[k] - hy * SIN[k], hx * SIN[k] + hy * COS[k]


@njit(**JIT)
def blocked_headings(i, hx, hy, step, count, units):
    """Bit k is set if a step along (hx, hy), turned left by k * 22.5 degrees, runs into a unit.

    Only bits 0 to count - 1 are looked at. Units that already overlap may move apart, and those
    that walk the same way block nobody (recordings of 8m: a formation walks in full speed, its
    bodies touching). With d from this unit to another one and t along a heading,
    |d - step t|^2 < limit^2 is d t > bound.
    """
    u = units[i]
    blocked = 0
    for j in range(len(units)):
        v = units[j]
        dx, dy = v.x - u.x, v.y - u.y
        reach = u.body + v.body - OVERLAP
        apart = dx * dx + dy * dy
        if apart < (reach + step) ** 2 and v.health > 0 and u.layers & v.layers and j != i:
            if v.heading_x * hx + v.heading_y * hy > SAME_WAY:
                continue
            ahead, left = dx * hx + dy * hy, dy * hx - dx * hy
            bound = (apart + step * step - min(apart, reach * reach)) / (2 * step)
            for k in range(count):
                blocked |= (ahead * COS[k] + left * SIN[k] > bound) << k
    return blocked


@njit(**JIT)
def step_along(u, hx, hy, step):
    """Unit u goes `step` cells along the heading (hx, hy), and is seen to walk that way."""
    u.x += step * hx
    u.y += step * hy
    u.heading_x, u.heading_y = hx, hy


@njit(**JIT)
def shorter_way_round(i, hx, hy, far, units):
    """1 (left) or -1 (right): where the crowd between unit i and a point `far` ahead ends sooner.

    The crowd is its friends who stand there. Recorded on 8m: the last rank walks round both ends of
    the firing line (which unit takes which end is not always the recorded one).
    """
    u = units[i]
    left, right = 0.0, 0.0
    for j in range(len(units)):
        v = units[j]
        dx, dy = v.x - u.x, v.y - u.y
        stands = v.heading_x == 0 and v.heading_y == 0
        if j != i and v.health > 0 and u.layers & v.layers and stands and v.side == u.side:
            if 0.0 < dx * hx + dy * hy < far:
                across = dy * hx - dx * hy
                left, right = max(left, across), max(right, -across)
    return 1 if left < right else -1


@njit(**JIT)
def advance(i, goal_x, goal_y, stop_at, units, world):
    """Walk one loop towards a point until within stop_at of it, round walls and other units.

    What is in the way is passed on the side that was nearer when it was met, which the unit keeps
    until the way is free: so it walks round a crowd, and melee units surround a target instead of
    queueing. Each side is tried up to 157.5 degrees off the straight way.
    """
    u = units[i]
    kind = world.kinds[u.kind]
    dx, dy = goal_x - u.x, goal_y - u.y
    far = np.sqrt(dx * dx + dy * dy)
    if far <= stop_at + 1e-9:
        u.speed = 0.0
        return
    u.speed = min(u.speed + kind.acceleration, kind.speed)
    if kind.acceleration < kind.speed:  # a Medivac brakes before it arrives
        u.speed = min(u.speed, np.sqrt(2 * kind.acceleration * (far - stop_at)))
    step = min(u.speed, far - stop_at)
    if step <= 0.0:
        return
    Y = world.walkable.shape[1]
    if not (world.open_ground or u.layers == FLYING or kind.walks_cliffs):
        cell_x, cell_y = ground_near(goal_x, goal_y, world)
        way = world.route[cell_x * Y + cell_y, int(u.x) * Y + int(u.y)]
        if way < STRAIGHT:  # a wall in between
            dx, dy = float(DX[way]), float(DY[way])
            far = np.sqrt(dx * dx + dy * dy)
    hx, hy = dx / far, dy / far
    into_wall = wall(u, u.x + hx * step, u.y + hy * step, world)
    if not into_wall and not blocked_headings(i, hx, hy, step, 1, units):  # mostly it is free
        step_along(u, hx, hy, step)
        u.detour = 0
        return
    blocked = blocked_headings(i, hx, hy, step, HEADINGS, units)
    if u.detour == 0:
        u.detour = shorter_way_round(i, hx, hy, far, units)
    for side in (u.detour, -u.detour):
        for turn in range(1, HALF_TURN):
            k = side * turn % HEADINGS
            tx, ty = turned(hx, hy, k)
            if not (blocked >> k & 1 or wall(u, u.x + step * tx, u.y + step * ty, world)):
                step_along(u, tx, ty, step)
                u.detour = side
                return


@njit(**JIT)
def stands_firm(u, world):
    """True while nothing can push unit u: its weapon is raised or cools down, or it cannot walk."""
    return u.windup >= 0 or u.cooldown > 0 or world.kinds[u.kind].speed == 0


@njit(**JIT)
def push_apart(units, world):
    """Overlapping units part: each by half of the overlap, or by all of it where the other stands
    firm. Two that stand firm stay as they are."""
    for i in range(len(units)):
        u = units[i]
        if u.health <= 0:
            continue
        x, y, body = u.x, u.y, u.body  # read once: it tells on big maps
        for j in range(i):
            v = units[j]
            dx, dy = v.x - x, v.y - y
            apart, reach = dx * dx + dy * dy, body + v.body - OVERLAP
            if apart < reach * reach and v.health > 0 and u.layers & v.layers:
                u_firm, v_firm = stands_firm(u, world), stands_firm(v, world)
                far = max(np.sqrt(apart), 1e-6)
                share = (1.0 if u_firm or v_firm else 0.5) * (reach - far) / far
                if not u_firm and not wall(u, u.x - share * dx, u.y - share * dy, world):
                    u.x -= share * dx
                    u.y -= share * dy
                    x, y = u.x, u.y
                if not v_firm and not wall(v, v.x + share * dx, v.y + share * dy, world):
                    v.x += share * dx
                    v.y += share * dy


@njit(**JIT)
def call_for_help(i, v, units, world):
    """Unit v was struck by unit i: who of its side has no target and stands near v turns on i."""
    if units[i].health <= 0:
        return
    for k in range(len(units)):
        w = units[k]
        idle = w.health > 0 and w.order == AUTO and w.target < 0 and w.side == v.side
        can_hit = world.kinds[w.kind].weapon & world.kinds[units[i].kind].seen_as
        if idle and can_hit:
            if distance(v, w) <= CALL_RADIUS:
                w.target = i


@njit(**JIT)
def hurt(i, j, units, world):
    """One hit of unit i's weapon on unit j: shields first, armour on what reaches the health."""
    v = units[j]
    if v.health <= 0:
        return
    attacker, victim = world.kinds[units[i].kind], world.kinds[v.kind]
    damage = (
        attacker.damage
        + attacker.bonus_light * victim.light
        + attacker.bonus_armored * victim.armored
    )
    absorbed = min(v.shield, damage)
    v.shield -= absorbed
    v.unhurt = 0.0
    if damage > absorbed:
        v.health -= max(damage - absorbed - victim.armor, 0.5)
    if v.health <= 0:
        die(j, units, world)
    else:
        call_for_help(i, v, units, world)


@njit(**JIT)
def die(j, units, world):
    """Unit j is dead; a Baneling leaves an explosion behind."""
    v = units[j]
    v.health = v.shield = v.energy = 0.0
    v.windup = -1.0
    v.exploding = world.kinds[v.kind].suicide


@njit(**JIT)
def strike(i, j, units, world):
    """Unit i's shot or blow reaches unit j, and with a beam everybody on its line."""
    u, v = units[i], units[j]
    kind = world.kinds[u.kind]
    far = max(distance(u, v), 1e-9)
    ux, uy = (v.x - u.x) / far, (v.y - u.y) / far
    for k in opponents(u, units, world):
        hit = k == j
        if kind.line_length > 0:  # a line across the firing direction, centred on the target
            w = units[k]
            along = abs((w.x - v.x) * ux + (w.y - v.y) * uy)
            across = abs((w.y - v.y) * ux - (w.x - v.x) * uy)
            before = max(along - kind.line_width / 2, 0.0)
            beside = max(across - kind.line_length / 2, 0.0)
            hit = before**2 + beside**2 <= w.radius**2
            hit = hit and kind.weapon & world.kinds[w.kind].seen_as != 0
        if hit:
            for _ in range(kind.hits):
                hurt(i, k, units, world)


@njit(**JIT)
def explode(i, units, world):
    """A Baneling's blast: every opponent on the ground whose radius it reaches."""
    u = units[i]
    u.exploding = 0
    for k in opponents(u, units, world):
        v, kind = units[k], world.kinds[units[k].kind]
        if distance(u, v) <= world.kinds[u.kind].blast_radius + v.radius and kind.seen_as & GROUND:
            hurt(i, k, units, world)


@njit(**JIT)
def release(i, j, units, world):
    """The wind-up is over: explode, shoot, or hit at once."""
    u, v = units[i], units[j]
    kind = world.kinds[u.kind]
    u.windup, u.recovers = -1.0, kind.backswing
    if kind.suicide:
        die(i, units, world)
    elif kind.missile_speed > 0 or kind.flight > 0:
        gap = max(distance(u, v) - u.radius - v.radius, 0.0)
        u.flight = kind.flight if kind.flight > 0 else gap / kind.missile_speed
        u.flight_target = j
    else:
        strike(i, j, units, world)
        if kind.second_hit > 0:
            u.flight, u.flight_target = kind.second_hit, j


@njit(**JIT)
def fight(i, j, units, world, book):
    """Unit i attacks unit j: walk into range, wait for the weapon, raise it, let go.

    Returns how near to j's centre it has to walk first, or STAY.
    """
    u, v = units[i], units[j]
    kind = world.kinds[u.kind]
    gap = distance(u, v) - u.radius - v.radius
    ready = False
    if u.windup >= 0:
        if gap > kind.range + kind.slop:  # it got away: the attack never happened
            u.windup, u.cooldown = -1.0, 0.0
        else:
            u.windup -= 1.0
            ready = u.windup <= 0
    elif kind.second_hit > 0 and u.flight >= 0:
        if gap > kind.range + kind.slop:
            u.flight = -1.0
    elif gap > kind.range:
        return kind.range + u.radius + v.radius - INSIDE
    elif u.cooldown <= 0:
        # added to, not set, so that what is left of a loop is not lost: the rate stays exact
        u.cooldown += kind.period + uniform(book, -1.0, 2.0)
        u.windup = kind.damage_point
        ready = kind.damage_point <= 0
    if ready:
        release(i, j, units, world)
    return STAY


@njit(**JIT)
def heal(i, j, units, world):
    """Medivac i restores the health (never the shield) of unit j, for energy. Returns as fight."""
    u, v = units[i], units[j]
    kind = world.kinds[u.kind]
    if distance(u, v) - u.radius - v.radius > kind.heal_range:
        return kind.heal_range + u.radius + v.radius - INSIDE
    missing = world.kinds[v.kind].health - v.health
    if missing > 0 and world.kinds[v.kind].biological:
        given = min(kind.heal_rate, missing, u.energy / kind.heal_cost)
        v.health += given
        u.energy -= given * kind.heal_cost
    return STAY


@njit(**JIT)
def acquire(i, units, world, book):
    """An enemy, or a Colossus that fires at will, looks for a target among those it can hit.
    (`live` does not ask while a weapon is raised, or between the two blows of a Zealot.)

    It keeps its target without a look while that is in weapon range and the weapon cools down. Else
    it looks: every SCAN_EVERY loops as far as it sees (`scan`; with a target, no less far than its
    weapon reaches), in the loops between only if it has a target, and only in weapon range. It
    takes, in this order: who threatens (an enemy's Medivac does not, an agent's does); who is in
    weapon range; who has it as its own target; the target it has; the nearest, but in weapon range
    all are equally near, and it draws. (`python -m starcraft.recorded` counts how often the target
    is the one it killed.) So it turns on who shoots at it while it chases another: in the game two
    Marines that fire by turns win 2m_vs_1z, 98 % after 50,000 steps
    (https://arxiv.org/abs/2506.18537, Table 2). If it sees nobody it keeps its target, up to the
    leash; one that is farther off than it sees is given up for anybody it sees. Who hunts keeps its
    target, the first of which is drawn (see begin), until it is dead; then it chooses in the same
    order, at any distance. A Colossus that fires at will has no target to keep.
    """
    u = units[i]
    kind = world.kinds[u.kind]
    scan = np.inf if u.hunts else kind.scan if u.order == AUTO else kind.range
    looks = book.clock % SCAN_EVERY == SCAN_AT
    if u.target >= 0:
        gap = distance(u, units[u.target]) - u.radius - units[u.target].radius
        if u.hunts or (gap <= kind.range and u.cooldown > 0):
            return
        if gap > LEASH:
            u.target = -1
    if not looks:
        if u.target < 0:
            return
        scan = kind.range
    elif u.target >= 0:
        scan = max(scan, kind.range)
    first, drawn_from, kept = np.inf, 0.0, u.target
    for j in opponents(u, units, world):
        v = units[j]
        if v.health > 0 and kind.weapon & world.kinds[v.kind].seen_as:
            gap = distance(u, v) - u.radius - v.radius
            if gap <= scan:
                # a hundred is more than any distance on these maps
                rank = max(gap - kind.range, 0.0)
                rank += 400.0 * (gap > kind.range) - 200.0 * (v.target == i) - 100.0 * (j == kept)
                rank += 1000.0 * (not world.kinds[v.kind].threatens)
                if rank < first:
                    first, drawn_from = rank, 0.0
                if rank == first:
                    drawn_from += 1.0
                    if uniform(book, 0.0, drawn_from) < 1.0:
                        u.target = j


@njit(**JIT)
def fire_at_will(i, units, world, book):
    """A Colossus that stands without an order to attack shoots at an opponent in weapon range (see
    fires_at_will in smac_maps.json)."""
    u = units[i]
    stands = u.heading_x == 0 and u.heading_y == 0
    if u.windup < 0:
        u.target = -1
        if stands:
            acquire(i, units, world, book)
    if stands and u.target >= 0:
        fight(i, u.target, units, world, book)


@njit(**JIT)
def seek_patient(i, units, world):
    """A Medivac that plays by itself looks for the worst hurt friend that nobody else heals."""
    u = units[i]
    kind = world.kinds[u.kind]
    if u.target >= 0 and units[u.target].health < world.kinds[units[u.target].kind].health:
        if u.energy > 0 and units[u.target].health > 0:
            return
    u.target = -1
    if u.energy < kind.heal_min_energy:
        return
    worst = 1.0
    for j in range(len(units)):
        v = units[j]
        share = v.health / world.kinds[v.kind].health
        if v.side == u.side and 0 < share < worst and world.kinds[v.kind].biological:
            if distance(u, v) - u.radius - v.radius <= kind.heal_scan:
                taken = False
                for k in range(len(units)):
                    w = units[k]
                    if (
                        k != i
                        and w.target == j
                        and world.kinds[w.kind].heal_rate > 0
                        and w.health > 0
                    ):
                        taken = True
                if not taken:
                    worst = share
                    u.target = j


@njit(**JIT)
def live(i, units, world, book):
    """One game loop of one unit."""
    u = units[i]
    kind = world.kinds[u.kind]
    if u.flight >= 0 and (u.health > 0 or kind.second_hit == 0):  # a shot outlives its shooter
        u.flight -= 1.0
        if u.flight <= 0:
            u.flight = -1.0
            strike(i, u.flight_target, units, world)
    if u.health <= 0:
        return
    if u.cooldown > 0:
        u.cooldown -= 1.0
    if u.recovers > 0:
        u.recovers -= 1.0
    u.unhurt += 1.0
    u.heading_x = u.heading_y = 0.0
    if u.shield < kind.shield and u.unhurt > kind.shield_delay:
        u.shield = min(u.shield + kind.shield_regen, kind.shield)
    if kind.health_regen > 0:
        u.health = min(u.health + kind.health_regen, kind.health)
    if kind.energy_regen > 0:
        u.energy = min(u.energy + kind.energy_regen, kind.energy_max)

    if u.target >= 0 and units[u.target].health <= 0:
        if u.windup >= 0:  # the attack never happened: the weapon is ready
            u.windup, u.cooldown = -1.0, 0.0
        u.target, u.recovers = -1, 0.0
        if kind.second_hit > 0:
            u.flight = -1.0
        if u.order == ATTACK:
            u.order = HOLD
    if u.order == AUTO:
        if kind.heal_rate > 0:
            seek_patient(i, units, world)
        elif u.windup < 0 and (u.flight < 0 or kind.second_hit == 0):  # not between two blows
            acquire(i, units, world, book)
    x, y, stop_at = u.goal_x, u.goal_y, STAY
    if u.target >= 0 and (u.order == AUTO or u.order == ATTACK):
        x, y = units[u.target].x, units[u.target].y
        if kind.heal_rate > 0:
            stop_at = heal(i, u.target, units, world)
        else:
            stop_at = fight(i, u.target, units, world, book)
    elif u.order == MOVE or (u.order == AUTO and u.goal_x >= 0):
        stop_at = 0.0
    else:
        u.speed = 0.0
    if stop_at != STAY and u.recovers <= 0:
        advance(i, x, y, stop_at, units, world)
    if kind.fires_at_will and (u.order == HOLD or u.order == MOVE):
        fire_at_will(i, units, world, book)


@njit(**JIT)
def give_orders(units, actions, world):
    """Turn the agents' SMAC actions (N,) into orders. A new order breaks off a raised weapon, any
    order ends a backswing, and one to attack another target turns a Colossus' beam away.

    An ally on AUTO plays by itself, for tests: its action means nothing.
    """
    for i in range(world.n_allies):
        u, action = units[i], actions[i]
        kind = world.kinds[u.kind]
        if u.health <= 0 or u.order == AUTO:
            continue
        target = -1
        if action >= FIRST_TARGET:
            target = action - FIRST_TARGET
            if kind.heal_rate == 0:
                target += world.n_allies
                if not kind.weapon & world.kinds[units[target].kind].seen_as:
                    continue  # StarCraft II refuses the order: the unit goes on as before
        if target != u.target or u.order != ATTACK:
            if u.windup >= 0:
                u.windup, u.cooldown = -1.0, 0.0
            if kind.second_hit > 0:
                u.flight = -1.0
        if target >= 0 and target != u.flight_target and u.flight > kind.burn > 0:
            u.flight = -1.0  # the beam has touched nobody yet: see burn in smac_maps.json
        u.target, u.recovers = target, 0.0
        if target >= 0:
            u.order = ATTACK
        elif action == STOP:
            u.order = HOLD
        else:
            u.order = MOVE
            u.heading_x = 1.0 * ((action == EAST) - (action == WEST))
            u.heading_y = 1.0 * ((action == NORTH) - (action == SOUTH))
            ahead = room_ahead(u, u.heading_x, u.heading_y, world.move_amount, world)
            u.goal_x = u.x + ahead * u.heading_x
            u.goal_y = u.y + ahead * u.heading_y


@njit(**JIT)
def begin(units, world, book):
    """A new battle of fresh units, and the enemy's one order: walk to the goal, or hunt.

    They walk in formation: every enemy keeps its offset from the middle of its group (recordings:
    exact to 0.001 cell). Each of those that hunt is sent against an ally that is drawn (recordings
    of 2c_vs_64zg: of 28 Zerglings seen to choose between two Colossi, 17 ran to the farther). One
    that cannot hit this ally looks for another, see acquire. The enemies then live for one loop
    before the agents' first orders (recorded).
    """
    book.clock, book.steps, book.terminated, book.truncated = 0, 0, 0, 0
    where = uniform(book, 0.0, 1.0)  # along the line of possible goals
    for variant in range(len(world.variants)):  # places that the engine takes now and then
        j, share, x, y = world.variants[variant]
        if j >= 0 and uniform(book, 0.0, 1.0) < share:
            units[int(j)].x, units[int(j)].y = x, y
    goal_x = world.goals[0, 0] + where * (world.goals[1, 0] - world.goals[0, 0])
    goal_y = world.goals[0, 1] + where * (world.goals[1, 1] - world.goals[0, 1])
    middle_x, middle_y = 0.0, 0.0
    for j in range(world.n_allies, len(units)):
        middle_x += units[j].x / world.n_enemies
        middle_y += units[j].y / world.n_enemies
    far = max(np.sqrt((goal_x - middle_x) ** 2 + (goal_y - middle_y) ** 2), 1e-9)
    for j in range(world.n_allies, len(units)):
        v = units[j]
        v.heading_x, v.heading_y = (goal_x - middle_x) / far, (goal_y - middle_y) / far
        v.goal_x, v.goal_y = goal_x, goal_y
        if goal_x >= 0 and not wall(v, goal_x + v.x - middle_x, goal_y + v.y - middle_y, world):
            v.goal_x += v.x - middle_x
            v.goal_y += v.y - middle_y
        if v.hunts:
            prey = int(uniform(book, 0.0, world.n_allies))
            if world.kinds[v.kind].weapon & world.kinds[units[prey].kind].seen_as:
                v.target = prey
    for j in range(world.n_allies, len(units)):
        live(j, units, world, book)
    book.clock = 1


@njit(**JIT)
def play(units, actions, world, book):
    """One environment step: orders, then step_mul game loops."""
    for i in range(len(units)):
        units[i].before = units[i].health + units[i].shield
    give_orders(units, actions, world)
    for _ in range(world.step_mul):
        # which side goes first is drawn, and all else is alike: neither side gains by it
        first = 0 if uniform(book, 0.0, 1.0) < 0.5 else world.n_allies
        for k in range(len(units)):
            live((first + k) % len(units), units, world, book)
        push_apart(units, world)
        book.clock += 1
        bang = True
        while bang:  # one explosion may set off the next
            bang = False
            for i in range(len(units)):
                if units[i].exploding:
                    explode(i, units, world)
                    bang = True
