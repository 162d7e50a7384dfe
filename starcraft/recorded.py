"""Recorded battles of the real game, played again order by order: do those fall who fell?

    python -m starcraft.recorded                       # half a minute
    python -m starcraft.recorded --maps 3m --draws 40

Units are put where the record says, which it does when they are attacked or ordered to move (about
a third of the time); between, they walk by the simulator's rules. The agents get the orders that
they got, in each loop of a step, so that their backswings end at once. Nobody dies but those who
died, in the loop in which they died. Left to the simulator is who is hit, and how often: by its
death a unit must have lost its health and shield, and not much more; who lived must have lost less;
and who killed it must have been aiming at it.

`recorded_battles.json.gz` says where the records are from, and how they are written. SMAC:
https://arxiv.org/abs/1902.04043
"""

import argparse
import gzip
import json
from pathlib import Path

import numpy as np

from .maps import FIRST_TARGET, STOP
from .simulator import BattleSim

FILE = Path(__file__).with_name("recorded_battles.json.gz")
BATTLES = json.loads(gzip.decompress(FILE.read_bytes()))["battles"]  # {map: [battle]}
LOOPS = 8  # of a step
PLENTY = 1e6  # of health: nobody dies too soon
# A blow too many, or one that the simulator deals a loop later, is no contradiction.
FELL, LIVED = (0.92, 1.21), 1.0  # shares of its health that a unit has lost


def play_again(name, battle, seed=0):
    """(N + M,) what each unit has lost by its death, or the end, as a share of its health and
    shield, (N + M,) bool whether it died, and (N + M,) whether its killer was aiming at it then: 1,
    0, or NaN where there was none. `battle`: one of BATTLES[name]."""
    sim = BattleSim(name, 1, seed)
    units, N = sim.units[0], sim.n_agents
    kinds = sim.world["kinds"][units["kind"]]
    whole = kinds["health"] + kinds["shield"]
    sim.world["kinds"]["health_regen"] = 0  # it stops at the kind's health
    units["health"] = PLENTY
    before = units["health"] + units["shield"]
    left, aimed = before.copy(), np.full(len(units), np.nan)  # of those who died, by then
    dies = {unit: (loop, killer) for loop, unit, killer in battle["deaths"]}
    sim.world["step_mul"] = 1

    def fall(unit, killer):
        aimed[unit] = units["target"][killer] == unit
        left[unit] = units["health"][unit] + units["shield"][unit]
        units["health"][unit], units["shield"][unit], units["windup"][unit] = 0, 0, -1

    for step, (actions, places) in enumerate(zip(battle["actions"], battle["places"], strict=True)):
        for unit, x, y in places:
            if units["health"][unit] > 0:
                units["x"][unit], units["y"][unit] = x, y
        orders = np.array(actions)  # (N,), -1 for the dead
        for loop in range(LOOPS * step, LOOPS * (step + 1)):
            for unit, (when, killer) in dies.items():
                if when == loop:
                    fall(unit, killer)
            alive = units["health"] > 0
            if not alive[:N].any() or not alive[N:].any():
                break
            target = np.minimum(orders - FIRST_TARGET + N, len(units) - 1)
            gone = (orders >= FIRST_TARGET) & ~alive[target]  # it died within the step
            sim.avail_actions[:] = True  # the game took all of these orders
            sim.step(np.where(alive[:N], np.where(gone, STOP, orders), 0)[None])
            sim.book["terminated"] = sim.book["truncated"] = 0
    died = np.isin(np.arange(len(units)), list(dies))
    for unit, (_, killer) in dies.items():
        if units["health"][unit] > 0:  # it dies right after the last loop
            fall(unit, killer)
    left = np.where(died, left, units["health"] + units["shield"])
    return (before - left) / whole, died, aimed


def fits(lost, died):
    """(N + M,) bool: is what a unit lost no contradiction to its fate?"""
    return np.where(died, (lost > FELL[0]) & (lost < FELL[1]), lost < LIVED)


def agreement(name, draws, battles=None):
    """For agents that fell, agents that lived, and enemies that fell: an array with a row for each
    of them in the records (the first `battles`), over so many draws: the share of its health that
    it lost, how often that fits, the bits of surprise at its fate (-log2 of how often it came out,
    half a draw added), and how often its killer was aiming at it (NaN without one)."""
    found = {"agents that fell": [], "agents that lived": [], "enemies that fell": []}
    for battle in BATTLES[name][:battles]:
        played = [play_again(name, battle, seed) for seed in range(draws)]
        lost, died, aimed = map(np.array, zip(*played, strict=True))  # (draws, N + M)
        fit = fits(lost, died).mean(0)
        bits = -np.log2((fit * draws + 0.5) / (draws + 1))
        rows = np.stack((lost.mean(0), fit, bits, aimed.mean(0)), 1)
        died, agents = died[0], np.arange(len(rows)) < len(battle["actions"][0])
        found["agents that fell"].extend(rows[agents & died])
        found["agents that lived"].extend(rows[agents & ~died])
        found["enemies that fell"].extend(rows[~agents & died])
    return {who: np.array(rows) for who, rows in found.items()}


def main():
    parser = argparse.ArgumentParser(description="Recorded battles, order by order.")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")  # one line
    parser.add_argument("--maps", nargs="+", default=list(BATTLES), choices=BATTLES, metavar="NAME",
                        help="of which to play the records (all)")  # fmt: skip
    parser.add_argument("--draws", type=int, default=8, metavar="N", help="of each battle (8)")
    args = parser.parse_args()
    if not 1 <= args.draws <= 1000:
        parser.error("--draws must be from 1 to 1000")
    print("| map | who | lost of its health | fits | bits of surprise | killer aimed at it |")
    print("|---|---|--:|--:|--:|--:|")
    agents = []
    for name in args.maps:
        found = agreement(name, args.draws)
        for who, rows in found.items():
            lost, fit, bits, aimed = rows.mean(0)
            shown = "" if np.isnan(aimed) else f"{aimed:.0%}"
            print(f"| {name} | {who} | {lost:.2f} | {fit:.0%} | {bits:.2f} | {shown} |", flush=True)
        agents += [found["agents that fell"], found["agents that lived"]]
    bits, aimed = np.concatenate(agents).T[2:]
    print(f"\nAll agents: {bits.sum():.0f} bits; their killers aimed at {np.nanmean(aimed):.1%}.")


if __name__ == "__main__":
    main()
