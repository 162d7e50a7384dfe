"""Tests of single rules of a battle, one game loop at a time. SMAC: https://arxiv.org/abs/1902.04043

    python -m pytest starcraft/test_rules.py

N agents, M enemies. Rows of place_units: x, y, health, shield, energy, weapon cooldown.
"""

import numpy as np
import pytest
from numba import njit

from . import battle
from .interface import judge
from .maps import AUTO, EAST, FIRST_TARGET, MAPS, NO_OP, OVERLAP, STOP, UNIT
from .simulator import BattleSim

GONE = [0, 0, 0, 0, 0, 0]


def test_a_medivac_alone_has_lost_but_two_have_not(monkeypatch):
    """SMAC's rule, also where it is odd: it counts whether one enemy is left."""
    enemy = [["Marine", 1, 23, 16], ["Medivac", 2, 23, 16]]
    monkeypatch.setitem(MAPS, "mine", {**MAPS["MMM"], "enemy": enemy})
    sim = BattleSim("mine")
    ally = [[10, 16, 45, 0, 0, 0]] * sim.n_agents
    medivac = [25, 16, 150, 0, 50, 0]
    for left, won in (([medivac, medivac], False), ([GONE, medivac], True)):
        sim.place_units(0, ally, [GONE, *left], enemy_types=["Marine", "Medivac", "Medivac"])
        judge(sim.units[0], sim.world, sim.book[0])
        assert bool(sim.book[0]["battle_won"]) == bool(sim.book[0]["terminated"]) == won


def test_a_medivac_that_plays_by_itself_heals_its_own_side():
    """An enemy beside it has lost more; its weapon cools down for long."""
    sim = BattleSim("MMM")
    marine, medivac = [10, 10, 20, 0, 0, 0], [10, 11, 150, 0, 50, 0]
    enemy = [10.5, 12, 5, 0, 0, 1000]
    sim.place_units(0, [GONE, GONE, marine, *[GONE] * 6, medivac], [enemy, *[GONE] * 9])
    sim.units[0, 9]["order"] = AUTO
    sim.step(np.array([[NO_OP, NO_OP, STOP, *[NO_OP] * 6, STOP]]))
    assert sim.units[0, 9]["target"] == 2 and sim.units[0, 2]["health"] > 20
    assert sim.units[0, 10]["health"] <= 5


def fight(map_name, ally, enemy, actions, loops, step_mul=1, **changes):
    """One battle; the enemies (no Colossi) stand still and hold their fire. Yields the UNIT rows
    after each step. changes: fields of the enemies' kinds."""
    sim = BattleSim(map_name, step_mul=step_mul)
    sim.place_units(0, ally, enemy)
    units = sim.units[0]
    units["order"][sim.n_agents :] = 0  # HOLD
    for field, value in changes.items():
        sim.world["kinds"][field][units["kind"][sim.n_agents]] = value
    for loop in range(loops):
        sim.step(np.array([actions(loop)]))
        yield units.copy()


def test_a_hit_takes_half_a_point_at_least():
    ally = [[10, 16, 45, 0, 0, 0], GONE, GONE]
    enemy = [[13, 16, 45, 0, 0, 0], [30, 30, 45, 0, 0, 0], [30, 2, 45, 0, 0, 0]]
    shoot = [FIRST_TARGET, NO_OP, NO_OP]
    health = [
        units["health"][3] for units in fight("3m", ally, enemy, lambda _: shoot, 60, armor=100.0)
    ]
    lost = -np.diff([45, *health])
    assert set(lost.tolist()) == {0, 0.5} and 3 <= (lost > 0).sum() <= 5  # 60 loops, one in 9.8


def test_a_crowd_parts_pair_by_pair():
    """Beside a plain loop, in which every pair starts from where the one before it left off."""
    ally = [[10, 16, 45, 0, 0, 0], [10.3, 16.1, 45, 0, 0, 0], [10.2, 15.8, 45, 0, 0, 0]]
    enemy = [[30, y, 45, 0, 0, 0] for y in (2, 16, 30)]
    (units,) = fight("3m", ally, enemy, lambda _: [STOP] * 3, 1)
    places, reach = np.array(ally)[:, :2], 2 * units["body"][0] - OVERLAP
    for i in range(3):
        for j in range(i):
            apart = places[j] - places[i]
            far = np.hypot(*apart)
            if far < reach:
                places[i] -= (reach - far) / (2 * far) * apart
                places[j] += (reach - far) / (2 * far) * apart
    assert np.abs(places - np.array(ally)[:, :2]).max() > 0.1
    np.testing.assert_allclose(np.stack([units["x"], units["y"]], 1)[:3], places, atol=1e-12)


def test_between_its_two_blows_a_zealot_keeps_its_target():
    """One agent has stepped out of its reach, another stands in it."""
    sim = BattleSim("2s3z", terrain=np.ones((32, 32), bool))
    units, N = sim.units[0], sim.n_agents
    zealot = units[N + 2]  # its reach is 0.1 cells from body to body, 1.1 for the second blow
    zealot["x"], zealot["y"], zealot["target"], zealot["flight_target"] = 16, 16, 2, 2
    zealot["flight"], zealot["cooldown"] = 3, 15
    units["x"][2:4], units["y"][2:4] = (17.5, 15), 16
    sim.world["step_mul"] = 1
    sim.avail_actions[:, :, STOP] = True
    sim.step(np.full((1, N), STOP))
    assert zealot["flight"] == 2 and zealot["target"] == 2


@njit
def hit(i, j, units, world):
    battle.hurt(i, j, units, world)


@pytest.mark.parametrize(("health", "target"), [(45, 0), (0, -1)])
def test_friends_turn_on_a_striker_if_it_lives(health, target):
    sim = BattleSim("3m")
    sim.units["health"][0, 0] = health
    hit(0, 3, sim.units[0], sim.world)
    assert sim.units["target"][0, 4] == target


STALKER = [[10, 16, 80, 80, 0, 0], GONE, GONE]
ZEALOTS = [[14, 16, 100, 50, 0, 0], [13, 12, 100, 50, 0, 0], [30, 2, 100, 50, 0, 0]]


@pytest.mark.parametrize("other", [STOP, FIRST_TARGET + 1])
def test_an_order_that_breaks_off_an_attack_leaves_the_weapon_ready(other):
    def actions(loop):
        return [FIRST_TARGET if loop == 0 else other, NO_OP, NO_OP]

    first, second, *_ = fight("3s_vs_3z", STALKER, ZEALOTS, actions, 2)
    assert first["windup"][0] > 0 and first["cooldown"][0] > 0
    if other == STOP:
        assert second["windup"][0] == -1 and second["cooldown"][0] == 0
    else:  # it has begun again, on the other one
        assert second["target"][0] == 4 and second["cooldown"][0] >= first["cooldown"][0] - 3
    assert (second["health"] + second["shield"])[3] == 150, "the shot never came"


def test_an_order_ends_a_backswing():
    """The Stalker has shot, and is sent east in the next loop: it walks at once."""
    shots = []

    def actions(_):
        return [FIRST_TARGET if not shots else EAST, NO_OP, NO_OP]

    for units in fight("3s_vs_3z", STALKER, ZEALOTS, actions, 20):
        if shots:
            break
        if units["recovers"][0] > 0:
            shots.append(units["x"][0])
    assert units["x"][0] == pytest.approx(shots[0] + 2.9531 / 16, abs=1e-4)


def test_the_second_blow_of_a_zealot_falls_with_its_victim():
    """One that has 8 life dies of the first blow; a loop later the attacker is done with it. Steps
    have two loops here, so in one of two cases the blow comes in the first of them."""
    hit = [NO_OP, NO_OP, FIRST_TARGET, NO_OP, NO_OP]
    enemy = [[16, 16, 8, 0, 0, 0], [30, 2, 80, 80, 0, 0], GONE, GONE, GONE]
    flights = []
    for cooldown in (0, 1):
        ally = [GONE, GONE, [14.9, 16, 100, 50, 0, cooldown], GONE, GONE]
        for units in fight("2s3z", ally, enemy, lambda _: hit, 20, step_mul=2, armor=0.0):
            if units["health"][5] <= 0:
                flights.append(units["flight"][2])
                break
    assert len(flights) == 2 and min(flights) == -1


@pytest.mark.parametrize(
    ("name", "value"),
    [("target", 10**12), ("target", -2), ("flight_target", 10**12), ("kind", 99), ("side", 1),
     ("order", 9), ("x", 32.0), ("y", -0.1), ("goal_x", np.nan), ("detour", 5)],
)  # fmt: skip
def test_battles_that_cannot_be_are_not_loaded(name, value):
    """The compiled rules use these numbers as indices."""
    sim = BattleSim("3m", 2)
    saved = sim.state_dict()
    saved["units"].view(UNIT)[name][1, 0] = value
    with pytest.raises(ValueError, match="numbers that no battle can have"):
        sim.load_state_dict(saved)
    sim.load_state_dict(sim.state_dict())
