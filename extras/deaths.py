"""Whole battles of a trained team on the simulator: how they go, and who dies when.

    python -m extras.deaths RUN_DIR [--battles 32] [--json]

For comparison with battles that trained teams fought on StarCraft II (starcraft/real_game.json):
`python -m starcraft.fidelity --runs RUN_DIR` prints both. The first death of a side is counted in
game loops from the beginning of the battle (16 a second, 8 a step); battles without one are left
out of that mean.
"""

import json
import sys
from pathlib import Path

import numpy as np

import train
from extras.flags import Parser, number
from extras.watch import open_team, record


def first_death(frames):
    """The loop after which the first of U units is dead; NaN if none dies. frames (L + 1, U): one
    row before the first of L loops, and one after each."""
    dead = (frames["health"] <= 0).any(axis=1)
    return dead.argmax() if dead.any() else np.nan


def casualties(folder, battles):
    """Means by name, and the map; battle i is the first that `train.py --evaluate` plays in its
    environment i. Raises ValueError, one line, for a folder that holds no run of battles."""
    team = open_team(folder, "network", None)
    first = train.SEEDS_PER_RUN * team.flags.seed + train.EVALUATION_SEEDS
    rows = []
    for seed in range(first, first + battles):
        battle, frames, sim = record(team, seed)
        sides = frames[:, : sim.n_agents], frames[:, sim.n_agents :]
        dead = [(side["health"][-1] <= 0).sum() for side in sides]
        steps = (len(frames) - 1) / int(sim.world["step_mul"])
        rows.append((battle["result"] == "won", steps, *dead, *map(first_death, sides)))
    names = ("won", "steps", "dead_allies", "dead_enemies", "first_ally_death", "first_enemy_death")
    columns = np.array(rows, float).T
    means = [None if np.isnan(c).all() else float(np.nanmean(c)) for c in columns]
    return {"map": team.flags.map, "battles": battles} | dict(zip(names, means, strict=True))


def main(argv=None) -> int:
    parser = Parser(prog="python -m extras.deaths", description="How a trained team's battles go.")
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="made by train.py")
    parser.add_argument("--battles", type=number(int, 1, 100_000), default=32, help="how many")
    parser.add_argument("--json", action="store_true", help="one line for other programs")
    args = parser.parse_args(argv)
    with parser.refuses():
        found = casualties(args.run, args.battles)
    if args.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:18}{value:.3f}" if isinstance(value, float) else f"{name:18}{value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
