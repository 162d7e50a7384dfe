"""Tests of the simulator against recordings of the real game (real_game.json), without training.

python -m pytest starcraft/test_fidelity.py
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from . import recorded
from .fidelity import (
    CELL,
    EQUAL_SIDES,
    FAIR,
    INTERVAL,
    OPEN,
    REAL,
    WALK,
    WAY,
    cells_wrong,
    enemy_walk,
    kill_interval,
    lone_unit,
    mirrored_share,
    rest,
    start_error,
    way,
)
from .maps import AUTO, EAST, FIRST_TARGET, HOLD, MAPS, STOP, WEST, read_terrain, unit_facts
from .simulator import BattleSim

POSITIONS = REAL["start_positions"]


@pytest.mark.parametrize("name", [name for name, p in POSITIONS.items() if p["allies"]])
def test_start_positions(name):
    assert start_error(name) < CELL


@pytest.mark.parametrize("name", POSITIONS)
def test_enemies_are_created_in_the_recorded_cells(name):
    assert cells_wrong(name) == 0


@pytest.mark.parametrize("name", MAPS)
def test_all_start_positions_are_free(name):
    """The rule gives every map's positions: on walkable ground, apart but for the overlap."""
    sim = BattleSim(name)
    units = sim._template
    assert sim.world["walkable"][units["x"].astype(int), units["y"].astype(int)].all()
    apart = np.hypot(units["x"][:, None] - units["x"], units["y"][:, None] - units["y"])
    shares = (units["layers"][:, None] & units["layers"]) > 0
    reach = units["radius"][:, None] + units["radius"] - 63 / 1024
    assert (apart >= reach - 1e-6)[shares & ~np.eye(len(units), dtype=bool)].all()


def test_a_zealot_of_2s3z_has_two_places():
    """Recorded 28 times in 64 (sd of the share .06)."""
    sim = BattleSim("2s3z", 2000)
    moved = np.abs(sim.units["x"][:, : sim.n_agents] - 9.9194).min(1) < CELL
    assert 0.4 < moved.mean() < 0.48


@pytest.mark.parametrize(("kind", "real"), REAL["way_in_8_loops"].items())
def test_way_in_8_loops(kind, real):
    assert way(kind) == pytest.approx(real, rel=WAY)


@pytest.mark.parametrize(("kind", "row"), REAL["kill_intervals"].items())
def test_loops_between_two_kills(kind, row):
    assert kill_interval(kind) == pytest.approx(row["loops"], abs=INTERVAL)


def test_a_colossus_needs_two_attacks_for_a_zergling():
    """In 24 of 32 battles of 2c_vs_64zg nothing dies before loop 31: one attack does 30 of 35."""
    weapon = unit_facts()["Colossus"]["weapon"]
    hit = weapon["damage"] + weapon["bonus"]["Light"]
    assert weapon["hits"] * hit < unit_facts()["Zergling"]["health"] <= 2 * weapon["hits"] * hit


def test_enemies_walk_in_formation():
    for unit, x, y in REAL["enemy_8m"]["loop_24"]:
        assert enemy_walk("8m", 3)[unit - 8] == pytest.approx([x, y], abs=WALK)
    fresh, walked = (enemy_walk("8m", steps) for steps in (0, 3))
    assert np.ptp(walked - fresh, axis=0).max() < 1e-6  # all by the same vector


def test_eight_marines_stand_in_one_line():
    low, high = REAL["enemy_8m"]["line_x"]
    found = enemy_walk("8m", 8)  # 64 loops
    in_line = (found[:, 0] > low) & (found[:, 0] < high)
    assert in_line.all()


def test_rear_ranks_lengthen_the_line():
    """Whichever end they join: of six Marines the line would be 3.5 cells long."""
    assert np.ptp(enemy_walk("8m", 8)[:, 1]) > 4.0  # recorded: 13.5 to 18.1


@pytest.mark.parametrize(("kind", "terrain", "side", "limit"), REAL["edges"]["rest"])
def test_units_come_to_rest_at_walls(kind, terrain, side, limit):
    assert rest(kind, terrain, side, limit) == pytest.approx(limit, abs=1e-4)


@pytest.mark.parametrize("terrain", ["strip", "ravine"])
def test_units_died_on_walkable_ground_alone(terrain):
    rows = REAL["edges"]["died_in"][terrain]
    died = np.array([[cell == "1" for cell in row] for row in rows])[::-1].T  # (X, Y)
    assert died.sum() > 80 and read_terrain(terrain)[0][died].all()


def marines(battles, ally_x, enemy_x):
    """Battles of 3m whose allies stand still at ally_x, 0.8 cells apart, and cannot die; of the
    enemies there is only the first, at enemy_x, and its goal is far in the west."""
    sim = BattleSim("3m", battles, terrain=OPEN)
    units = sim.units
    units["x"][:, :3], units["y"][:, :3] = ally_x, (15.2, 16.0, 16.8)
    units["health"] = 1e6, 1e6, 1e6, 45, 0, 0
    units["x"][:, 3], units["y"][:, 3] = enemy_x, 15.9
    units["goal_x"][:, 3], units["goal_y"][:, 3] = 2.0, 15.9
    return sim


def test_an_enemy_draws_a_target_in_weapon_range_and_keeps_it():
    """Recorded on 3m: three enemies shoot 14 times at a team that stands still before one ally has
    fallen (battle 1), which they could not if all shot the nearest."""
    sim = marines(500, 12.0, 16.0)
    for _ in range(12):
        sim.step(np.full((500, 3), STOP))
    taken = 1e6 - sim.units["health"][:, :3]
    shots = taken.sum() / 6
    assert shots == pytest.approx(500 * 96 / 14.3, rel=0.1)
    np.testing.assert_allclose(taken.sum(0) / taken.sum(), 1 / 3, atol=0.08)  # 4 sd
    assert ((taken > 0).sum(1) == 1).all()


def test_an_enemy_turns_on_one_of_its_attackers():
    """Two Marines of three shoot at it: it shoots back at one of them, and keeps to that one. Then
    the third takes over, and it turns on that one."""
    sim = marines(200, 12.0, 16.0)
    sim.units["health"][:, 3] = 1e6

    def losses(actions, steps):
        before = sim.units["health"][:, :3].copy()
        for _ in range(steps):
            sim.avail_actions[:, :, FIRST_TARGET] = True  # as units stand, not as created
            sim.step(np.full((200, 3), actions))
        return before - sim.units["health"][:, :3]

    losses((FIRST_TARGET, STOP, FIRST_TARGET), 2)  # its first shot may have been raised before
    first, second, third = losses((FIRST_TARGET, STOP, FIRST_TARGET), 10).T
    assert (second == 0).all() and (np.minimum(first, third) == 0).all()
    assert 0.2 < (first > 0).mean() < 0.9  # who strikes first calls it (call_for_help)
    losses((STOP, FIRST_TARGET, STOP), 2)
    first, second, third = losses((STOP, FIRST_TARGET, STOP), 10).T
    assert (first + third == 0).all() and (second > 0).all()


@pytest.mark.parametrize("shoots", [True, False])
def test_a_zealot_that_chases_turns_on_who_shoots_at_it(shoots):
    """One Marine walks away from it. The other one is farther off, and shoots or stands."""
    sim = BattleSim("2m_vs_1z", terrain=np.ones((32, 32), bool))
    units = sim.units[0]
    units["x"], units["y"] = (20, 15, 17), (16, 12, 16)
    units["target"][2] = 0
    sim.avail_actions[:] = True  # as units stand, not as created
    sim.step(np.array([[EAST, FIRST_TARGET if shoots else STOP]]))
    assert units["target"][2] == (1 if shoots else 0)


def test_a_look_reaches_as_far_as_the_weapon():
    """A Stalker's is longer than its sight of 5.5 cells: it keeps its target in range at any loop,
    and one that has none leaves an ally alone who is in range and out of sight."""
    sim = BattleSim("3s5z", terrain=np.ones((32, 32), bool))
    units, N = sim.units[0], sim.n_agents
    gap = units["radius"][0] + units["radius"][N]
    units["health"][2:N] = units["health"][N + 1 :] = 0
    units["health"][N] = 1e6
    sim.world["step_mul"] = 1
    sim.avail_actions[:] = True
    actions = np.where(np.arange(N) < 2, STOP, 0)[None]
    for _ in range(8):
        units["x"][[0, 1, N]], units["y"][[0, 1, N]] = (16 - 5.8 - gap, 16 + 5.2 + gap, 16), 16
        units["target"][N], units["cooldown"][N], units["windup"][N] = 0, 0, -1
        sim.step(actions)
        assert units["target"][N] == 0
    units["x"][1], units["target"][N] = 16 + 5.8 + gap, -1
    for _ in range(8):
        units["x"][[0, 1, N]], units["y"][[0, 1, N]] = (16 - 5.8 - gap, 16 + 5.8 + gap, 16), 16
        sim.step(actions)
        assert units["target"][N] == -1


@pytest.mark.parametrize(("name", "bits", "aimed"), [("8m", 3.2, 0.5), ("2s3z", 3.2, 0.53)])
def test_recorded_orders_lead_to_recorded_deaths(name, bits, aimed):
    """Of agents that fell in 12 battles: bits of surprise, and how often the killer was aiming at
    its victim. The bounds are between 2.5 bits, 55 % and 64 %, as it is, and 4.0 and 3.8 bits,
    33 % and 40 %, where enemies shoot the nearest. What agents do to enemies is known better."""
    found = recorded.agreement(name, draws=8, battles=12)
    agents, enemies = (found[f"{who} that fell"].mean(0) for who in ("agents", "enemies"))
    assert agents[2] < bits and agents[3] > aimed
    assert enemies[0] == pytest.approx(1.03, abs=0.06) and enemies[3] > 0.95


@pytest.mark.parametrize(("kind", "loops"), [("Marine", 12), ("Marauder", 0), ("Stalker", 8)])
def test_an_enemy_stands_for_its_backswing_before_it_walks(kind, loops):
    """Whom it shot at has walked out of its range."""
    sim = lone_unit("Zealot", kind, x=14.0)
    sim.world["step_mul"] = 1
    enemy, ally = sim.units[0, 2], sim.units[0, 0]
    enemy["order"], enemy["target"] = AUTO, 0
    while enemy["cooldown"] <= 0 or enemy["windup"] >= 0:  # until it has shot
        sim.step(np.array([[STOP, 0]]))
    ally["x"], x, stood = 3.0, enemy["x"], -1
    while enemy["x"] == x:
        sim.step(np.array([[STOP, 0]]))
        stood += 1
    assert stood == loops - (loops > 0)  # the loop of the shot is the first


def test_enemies_look_around_every_fourth_loop():
    """Recorded on 3m and 8m: of 29 that walked straight into range on 8m 24 stopped after 26 or 30
    loops, on 3m 16 of 22 after 30 or 34, the others a loop or so later."""
    found = set()
    for gap in np.arange(5.6, 6.6, 0.14):  # from the allies' nearest; it looks as far as 5.5 cells
        sim = marines(1, 12.0, 12.75 + gap)
        sim.world["step_mul"] = 1
        while sim.units["target"][0, 3] < 0:
            looked = int(sim.book["clock"][0])
            sim.step(np.full((1, 3), STOP))
        found.add(looked)
    assert len(found) > 1 and {looked % 4 for looked in found} == {2}


def test_an_enemy_that_lost_its_target_walks_at_once():
    """It has just shot: its backswing ends with its target, and it goes on to its goal."""
    sim = marines(1, 12.0, 16.0)
    sim.world["step_mul"] = 1
    while sim.units["recovers"][0, 3] <= 0:
        sim.step(np.full((1, 3), STOP))
    x = sim.units["x"][0, 3]
    sim.units["x"][0, :3] = 25.0  # nobody else is near
    sim.units["health"][0, sim.units["target"][0, 3]] = 0
    sim.avail_actions[0, :, 0] = dead = sim.units["health"][0, :3] <= 0
    sim.step(np.where(dead, 0, STOP)[None])
    assert sim.units["x"][0, 3] == pytest.approx(x - 2.25 / 16)


@pytest.mark.parametrize(
    ("kind", "far", "fires"), [("Colossus", 4, True), ("Colossus", 8, True), ("Stalker", 4, False)]
)
def test_a_colossus_that_stands_fires_without_an_order(kind, far, fires):
    """Recorded on 2c_vs_64zg: 56 kills in 53 steps after two orders to stop; no other type of agent
    kills without an order to attack. One that walks does not fire, one that a wall holds does."""
    sim = lone_unit(kind, "Zealot")
    units, lost = sim.units[0], []
    for action, x in ((STOP, 16.0), (EAST, 8.0), (WEST, 1.0)):
        units["x"][0], before = x, units["health"][2]
        for _ in range(6):
            units["x"][2] = units["x"][0] + far
            sim.avail_actions[:] = True
            sim.step(np.array([[action, 0]]))
        lost.append(before - units["health"][2])
    assert [points > 0 for points in lost] == [fires, False, fires]


@pytest.mark.parametrize(
    ("later", "hurt"),
    [({}, 8), ({4: FIRST_TARGET + 1}, None), ({5: FIRST_TARGET + 1}, 8), ({4: EAST}, 8),
     ({4: STOP}, 8), ({3: STOP, 4: FIRST_TARGET}, 8)],
)  # fmt: skip
def test_a_new_target_turns_a_beam_away(later, hurt):
    """Recorded on 2c_vs_64zg: the first target dies 8 loops after the order. Here others come
    later, {loop: action}; the shot leaves after 2 loops, and touches its target after 4."""
    sim = BattleSim("3s_vs_3z", terrain=OPEN, step_mul=1)
    zealots = [[16, 14, 100, 50, 0, 0], [12, 18, 100, 50, 0, 0], [16, 30, 100, 50, 0, 0]]
    colossus = [[12, 14, 200, 150, 0, 0], [2, 2, 80, 80, 0, 0], [2, 4, 80, 80, 0, 0]]
    sim.place_units(0, colossus, zealots, ally_types=["Colossus", "Stalker", "Stalker"])
    units, found, action = sim.units[0], None, FIRST_TARGET
    units["order"][3:] = HOLD
    for loop in range(20):
        sim.avail_actions[:] = True
        action = later.get(loop, action)
        sim.step(np.array([[action, STOP, STOP]]))
        if units["shield"][3] < 50:
            found = loop
            break
    assert found == hurt


@pytest.mark.parametrize("kind", ["Stalker", "Marauder"])
def test_enemies_see_targets_at_five_and_a_half_cells(kind):
    """Recorded: their weapons reach 6, but they walk on and stop 4.5 to 5.4 cells from an ally."""
    for gap, walks in ((5.6, True), (5.3, False)):
        radius = unit_facts()[kind]["radius"] + unit_facts()["Zealot"]["radius"]
        sim = lone_unit("Zealot", kind, x=8 + radius + gap)
        enemy = sim.units[0, 2]
        enemy["order"], enemy["goal_x"], enemy["goal_y"] = AUTO, enemy["x"], 28.0
        sim.step(np.array([[STOP, 0]]))
        assert (enemy["y"] > 16.5) == walks


def test_a_zergling_keeps_the_colossus_it_was_sent_against():
    """Recorded on 2c_vs_64zg: 17 of 28 ran to the farther one.

    One Colossus on either side of them: they run into each other, and go round each other. Others
    would turn to the nearer one.
    """
    sim = BattleSim("2c_vs_64zg", 8)
    targets = sim.units["target"][:, 2:].copy()
    assert 0.4 < targets.mean() < 0.6 and set(targets.flat) == {0, 1}
    sim.units["x"][:, :2], sim.units["y"][:, :2] = (8, 24), 9
    sim.units["health"][:, :2] = 1e9
    sim.step(np.full((8, 2), STOP))
    assert (sim.units["detour"][:, 2:] != 0).mean() > 0.2
    assert (sim.units["target"][:, 2:] == targets).all()


def test_hunters_are_sent_against_those_whom_they_can_hit(monkeypatch):
    """A Medivac flies: no Zergling may be sent against it, for it would bite it."""
    ally = [["Colossus", 1, 16, 16], ["Medivac", 1, 16, 16]]
    order = {"agent_unit_order": ["Colossus", "Medivac"], "enemy_type_order": []}
    monkeypatch.setitem(MAPS, "mine", {**MAPS["2c_vs_64zg"], **order, "ally": ally})
    sim = BattleSim("mine")
    assert set(sim.units["target"][0, 2:]) == {-1, 0}
    sim.step(np.full((1, 2), STOP))
    assert set(sim.units["target"][0, 2:]) == {0}


def test_a_spine_crawler_looks_as_far_as_its_weapon_reaches():
    """Of the others, only some weapons reach farther than their owners look."""
    kinds = BattleSim("2s_vs_1sc").world["kinds"]
    rooted = kinds["speed"] == 0
    assert (kinds["scan"] == kinds["range"])[rooted].all() and rooted.sum() == 1
    assert (kinds["scan"] < kinds["range"]).sum() == 3  # Marauder, Stalker, Colossus


def test_zerglings_go_to_the_side_on_whose_edge_a_colossus_stands():
    """Cliff at 12 to 13: from below, those sent to a Colossus at 12.9 leave for the ramps."""
    for y, leaves in ((12.9, True), (12.1, False)):
        sim = BattleSim("2c_vs_64zg")
        enemies = [[15, 8, 35, 0, 0, 0]] + [[0, 0, 0, 0, 0, 0]] * 63
        sim.place_units(0, [[15, y, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], enemies)
        sim.units["health"][0, 0] = 1e9
        for _ in range(4):
            sim.step(np.array([[STOP, 0]]))
        assert (abs(sim.units["x"][0, 2] - 15) > 2) == leaves


def test_walkers_of_one_way_do_not_block_each_other():
    """Recorded on 8m: all eight make 1.125 cells in the first step, their bodies touching."""
    sim = BattleSim("8m")
    before = sim.units["x"][0, :8].copy()
    sim.step(np.full((1, 8), 4))
    np.testing.assert_allclose(sim.units["x"][0, :8] - before, 1.125, atol=1e-9)


def test_a_shot_on_a_dead_target_leaves_the_weapon_ready():
    """Two Marines raise their weapons on one life: one shoots, the other may shoot at once."""
    sim = BattleSim("2m_vs_1z", terrain=np.ones((32, 32), bool))
    sim.place_units(0, [[14, 15, 45, 0, 0, 0], [14, 17, 45, 0, 0, 0]], [[16, 16, 1, 0, 0, 0]])
    sim.step(np.full((1, 2), FIRST_TARGET))
    ready, cooling = np.sort(sim.units["cooldown"][0, :2])
    assert ready <= 0 and cooling > 3


@pytest.mark.parametrize("name", EQUAL_SIDES)
def test_neither_side_is_favoured(name):
    assert mirrored_share(name, 4000) == pytest.approx(0.5, abs=FAIR)


@pytest.mark.parametrize(
    "flags", ["fidelity --seeds -1", "recorded --draws 0", "recorded --maps x"]
)
def test_bad_flags_end_in_one_line(flags):
    module, *rest = flags.split()
    command = [sys.executable, "-m", f"starcraft.{module}", *rest]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
