"""Scripted players on the simulator, and how often they win.

    python -m starcraft.scripted          # the table of starcraft/README.md, 1,000 battles

E battles, N agents, M enemies, A actions.
"""

import argparse

import numpy as np

from .maps import ATTACK, FIRST_TARGET, MAPS, NORTH, STOP
from .simulator import BattleSim, random_actions

PLAYERS = ("random", "closest", "focus", "kite")


def scripted(sim, player):
    """(E, N) actions. "closest", the heuristic of the QMIX paper and of SMAC: each attacks the
    nearest enemy, seen or not, until that is dead. "focus" attacks the one with the least health
    and shield among those in weapon range, or walks to the nearest. "kite" is "focus", but walks
    away from an enemy that is near while its weapon cools down. Medivacs heal who lost the largest
    share of health, and follow.

    The orders of "closest" are entered in sim.avail_actions, which knows only enemies in range."""
    N = sim.n_agents
    kinds, alive = sim.world["kinds"][sim.units["kind"]], sim.units["health"] > 0
    us = {name: sim.units[name][:, :N, None] for name in ("x", "y", "radius")}  # (E, N, 1) each
    them = {name: sim.units[name][:, None, N:] for name in us}  # (E, 1, M) each
    dx, dy = them["x"] - us["x"], them["y"] - us["y"]
    far = np.where(alive[:, None, N:], np.hypot(dx, dy), np.inf)  # (E, N, M)
    heals = kinds["heal_rate"][:, :N] > 0  # (E, N)
    can_hit = kinds["weapon"][:, :N, None] & kinds["seen_as"][:, None, N:] != 0  # SMAC forgets it
    may = sim.avail_actions[..., FIRST_TARGET:] & (can_hit | heals[..., None])  # (E, N, M)

    if player == "closest":
        held = np.where(sim.units["order"] == ATTACK, sim.units["target"] - N, -1)[:, :N, None]
        rank = np.where(held == np.arange(far.shape[-1]), -1, far)
        may = np.where(heals[..., None], may, can_hit & np.isfinite(far))
    else:
        in_range = far - us["radius"] - them["radius"] <= kinds["range"][:, :N, None]
        life = (sim.units["health"] + sim.units["shield"])[:, None, N:]
        rank = np.where(in_range, life, 1000 + far)
    nearest = far.argmin(-1)[..., None]
    to_x, to_y = (np.take_along_axis(d, nearest, -1)[..., 0] for d in (dx, dy))  # (E, N)
    if player == "kite":
        flees = (sim.units["cooldown"][:, :N] > 4) & (far.min(-1) < 4.5)
        may = may & ~flees[..., None]
        to_x, to_y = np.where(flees, -to_x, to_x), np.where(flees, -to_y, to_y)

    if heals.any():
        n = min(far.shape[1:])  # a healer's target j is ally j, and it has at most M targets
        share = (sim.units["health"] / kinds["health"])[:, :n]
        patients = np.full(far[:, 0].shape, np.inf)  # (E, M)
        patients[:, :n] = np.where(share < 1, share, np.inf)
        rank = np.where(heals[..., None], patients[:, None], rank)
        may = may & np.isfinite(rank)
        fighters = alive[:, :N] & ~heals
        weight = fighters / np.maximum(fighters.sum(1, keepdims=True), 1)
        for to, name in ((to_x, "x"), (to_y, "y")):
            middle = (sim.units[name][:, :N] * weight).sum(1, keepdims=True)
            to[heals] = (middle - sim.units[name][:, :N])[heals]

    gain = np.stack((to_y, -to_y, to_x, -to_x), -1)  # north, south, east, west
    gain[~sim.avail_actions[..., NORTH:FIRST_TARGET]] = -np.inf
    walk = np.where(np.isfinite(gain.max(-1)), NORTH + gain.argmax(-1), STOP)
    target = np.where(may, rank, np.inf).argmin(-1)
    actions = np.where(alive[:, :N], np.where(may.any(-1), FIRST_TARGET + target, walk), 0)
    if player == "closest":
        np.put_along_axis(sim.avail_actions, actions[..., None], True, axis=2)
    return actions


def share_won(name, player, battles, seed=0):
    """The share of `battles` first battles that the player wins."""
    sim, rng = BattleSim(name, battles, seed), np.random.default_rng(seed)
    fighting, won = np.ones(battles, bool), np.zeros(battles, bool)
    while fighting.any():
        if player == "random":
            step = sim.step(random_actions(sim.avail_actions, rng))
        else:
            step = sim.step(scripted(sim, player))
        over = step.terminated | step.truncated
        won |= step.battle_won & fighting
        fighting &= ~over
        sim.reset(over)
    return won.mean()


def main():
    parser = argparse.ArgumentParser(description="Share of battles won by scripted players.")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")  # one line
    parser.add_argument("--maps", nargs="+", default=MAPS, choices=MAPS, metavar="NAME")
    parser.add_argument("--battles", type=int, default=1000, metavar="N", help="of each (1000)")
    args = parser.parse_args()
    if not 1 <= args.battles <= 100_000:
        parser.error(f"--battles is {args.battles}: it must be from 1 to 100000")
    print(f"Share of {args.battles} battles won\n\n| map | {' | '.join(PLAYERS)} |")
    print("|---|--:|--:|--:|--:|")
    for name in args.maps:
        shares = [f"{share_won(name, player, args.battles):.1%}" for player in PLAYERS]
        print(f"| {name} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    main()
