"""How near the simulator is to StarCraft II: a table and a picture.

    python -m starcraft.fidelity                       # everything; early training takes minutes
    python -m starcraft.fidelity --seeds 0             # without training: a minute
    python -m starcraft.fidelity --seeds 0 --runs RUN_DIR ...      # battles of trained networks

The real game's figures and their sources are in `real_game.json`. E battles, N agents, M enemies.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from .maps import AUTO, EAST, FIRST_TARGET, NORTH, SOUTH, STOP, WEST
from .simulator import BattleSim

REAL = json.loads(Path(__file__).with_name("real_game.json").read_text())
EQUAL_SIDES = ("3m", "8m", "2s3z", "3s5z", "1c3s5z")
# The tolerance of a fact: cells, loops, or a share of the real figure.
CELL, WAY, INTERVAL, RETURN, LENGTH, FAIR = 0.001, 0.01, 1.0, 0.04, 0.06, 0.025
WALK = 25 / 4096  # cells in 25 loops: the game cuts each loop's way down to 1/4096 cell
EARLY_STEPS = 10_000
TEAM_FACTS = {  # what extras/deaths.py counts, and its name in the recordings
    "won": "wins", "steps": "mean_steps", "dead_allies": "dead_allies",
    "first_ally_death": "first_ally_death_loop_mean",
    "first_enemy_death": "first_enemy_death_loop_mean",
}  # fmt: skip
OPEN = np.ones((32, 32), bool)
SIDES = {"north": NORTH, "south": SOUTH, "east": EAST, "west": WEST}


def start_error(name):
    """Cells, in x or y, from a recorded ally's start position to the nearest ally here, at most. Of
    several recorded ones the best counts."""
    fresh = BattleSim(name)._template
    spots = np.stack((fresh["x"], fresh["y"]), -1)[fresh["side"] == 0]
    return max(
        min(np.abs(spot - spots).max(-1).min() for spot in places)
        for _, places in REAL["start_positions"][name]["allies"]
    )


def cells_wrong(name):
    """How many enemies are not created in the recorded cell, in the recorded order."""
    fresh = BattleSim(name)._template
    enemy = fresh[fresh["side"] == 1]
    cells = np.stack((enemy["x"], enemy["y"]), -1).astype(int)
    return int((cells != REAL["start_positions"][name]["enemy_cells"]).any(-1).sum())


def lone_unit(kind, enemy, x=24.0, at=(8, 16), terrain=OPEN):
    """One battle of one allied `kind` at `at` and one `enemy` at (x, 16) that does nothing."""
    sim = BattleSim("2m_vs_1z", terrain=terrain)
    sim.place_units(
        0, [[*at, 1e9, 0, 50, 0], [0, 0, 0, 0, 0, 0]], [[x, 16, 1e9, 0, 0, 0]],
        ally_types=[kind, "Marine"], enemy_types=[enemy],
    )  # fmt: skip
    sim.units[0, 2]["order"] = AUTO + 1  # no order at all
    return sim


def way(kind):
    """Cells that a unit walks east in its first 8 loops."""
    sim = lone_unit(kind, "Zealot")
    sim.step(np.array([[EAST, 0]]))
    return float(sim.units[0, 0]["x"]) - 8


def rest(kind, terrain, side, limit):
    """Where a unit comes to rest that is sent towards a wall, from nearby."""
    axis = "xy"[side in ("north", "south")]
    before = limit - 0.8 if side in ("north", "east") else limit + 0.8
    at = (before, 16) if axis == "x" else (20, before)
    sim = lone_unit(kind, "Zealot", at=at, terrain=terrain)
    sim.step(np.array([[SIDES[side], 0]]))
    return float(sim.units[0, 0][axis])


def kill_interval(kind):
    """Mean loops from one attack of a unit to the next, in 8,000, on a target that cannot die."""
    sim = lone_unit(kind, "Zealot", x=12.0)
    begun = []  # loop at the end of each step in which an attack began
    for _ in range(1000):
        before = sim.units[0, 0]["cooldown"]
        sim.step(np.array([[FIRST_TARGET, 0]]))
        sim.book["steps"] = 1  # else the time limit ends the battle
        if sim.units[0, 0]["cooldown"] > before:
            begun.append(sim.book["clock"][0])
    return (begun[-1] - begun[0]) / (len(begun) - 1)


def enemy_walk(name, steps):
    """(M, 2) positions of the enemies after so many steps; the allies walk east for three."""
    sim = BattleSim(name)
    for t in range(steps):
        actions = np.full((1, sim.n_agents), EAST if t < 3 else STOP)
        sim.units["health"] = 1e6  # nobody dies
        sim.step(actions)
    return np.stack((sim.units["x"], sim.units["y"]), -1)[0, sim.n_agents :]


def mirrored_share(name, battles):
    """The allies' share of decided battles in which both sides are the built-in enemy, and the
    allies stand where the enemies do, turned by 180 degrees about the middle of the map."""
    sim = BattleSim(name, battles)
    N = sim.n_agents
    own, other = sim.units[:, :N], sim.units[:, N:]
    assert (np.sort(own["kind"]) == np.sort(other["kind"])).all(), f"{name}: the sides differ"
    own[:] = other
    own["side"], own["order"] = 0, AUTO
    for axis, span in zip("xy", sim.world["walkable"].shape, strict=True):
        for field in (axis, f"goal_{axis}"):
            own[field] = span - other[field]
        own[f"heading_{axis}"] = -other[f"heading_{axis}"]
    fighting, won, lost = np.ones(battles, bool), 0, 0
    while fighting.any():
        dead = sim.units["health"][:, :N] <= 0
        sim.avail_actions[:, :, :2] = np.stack((dead, ~dead), -1)  # as units stand, not as created
        step = sim.step(np.where(dead, 0, STOP))
        over = step.terminated | step.truncated
        drawn = (sim.units["health"] <= 0).all(1) | step.truncated
        won += (step.battle_won & fighting).sum()
        lost += (over & ~step.battle_won & ~drawn & fighting).sum()
        fighting &= ~over
        sim.reset(over)
    return won / (won + lost)


def run_python(train, arguments, what):
    """What `python *arguments` prints in the trainer's folder. If it fails, the program ends with
    one line: `what`, and the last that it said."""
    command = [sys.executable, *arguments]
    root = train.resolve().parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip() or f"exit status {done.returncode}"
        sys.exit(f"{what}: {said.splitlines()[-1]}")
    return done.stdout


def early_training(name, seed, train):
    """(return, episode length) over the first EARLY_STEPS steps of `train.py --paper`."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        flags = f"--paper --env sim --map {name} --seed {seed} --steps {EARLY_STEPS}"
        flags += f" --test-interval {EARLY_STEPS} --test-episodes 1 --run-dir"
        run_python(train, [train.resolve(), *flags.split(), run], f"{train} failed on {name}")
        with (run / "metrics.csv").open() as file:
            last = list(csv.DictReader(file))[-1]
    return float(last["train_return"]), float(last["t_env"]) / float(last["episodes"])


def trained_team(run, train):
    """Yields (fact, map, real, simulator): battles of a network that was trained here, beside the
    mean over the recorded battles of networks that were trained on the real game."""
    ours = json.loads(run_python(train, ["-m", "extras.deaths", run.resolve(), "--json"], run))
    recorded = [
        row
        for name, row in REAL["trained_teams"].items()
        if name.split("_qmix")[0].removesuffix("_relaxed") == ours["map"]
    ]
    for fact, of_game in TEAM_FACTS.items():
        real = [row[of_game] / (row["battles"] if fact == "won" else 1) for row in recorded]
        found = np.nan if ours[fact] is None else ours[fact]
        yield f"trained team: {fact}", ours["map"], np.mean(real or [np.nan]), found


def measure(args):
    """Yields (fact, map or unit, real, simulator, tolerance), tolerance in the fact's own units."""
    for name in REAL["start_positions"]:
        if REAL["start_positions"][name]["allies"]:
            yield "start positions, error (cells)", name, 0.0, start_error(name), CELL
        yield "enemies created in another cell", name, 0, cells_wrong(name), 0
    for kind, real in REAL["way_in_8_loops"].items():
        yield "way in 8 loops (cells)", kind, real, way(kind), WAY * real
    for kind, terrain, side, limit in REAL["edges"]["rest"]:
        fact = f"{side} side of the {terrain}, rest"
        yield fact, kind, limit, rest(kind, terrain, side, limit), CELL
    for kind, row in REAL["kill_intervals"].items():
        real = row["loops"]
        yield "loops between two kills", kind, real, kill_interval(kind), INTERVAL
    unit, x, y = REAL["enemy_8m"]["loop_24"][0]
    found = enemy_walk("8m", 3)[unit - 8]
    yield "enemy after 25 loops, x", "8m", x, found[0], WALK
    yield "enemy after 25 loops, y", "8m", y, found[1], WALK
    for name in EQUAL_SIDES:
        share = mirrored_share(name, args.battles)
        yield "allies' share of mirrored battles", name, 0.5, share, FAIR
    for name in args.maps if args.seeds else ():
        real = REAL["early_training"][name]
        runs = [early_training(name, seed, args.train) for seed in range(1, args.seeds + 1)]
        for k, (fact, tolerance) in enumerate((("return", RETURN), ("length", LENGTH))):
            allowed = tolerance * real[fact]
            if fact == "return":
                allowed = max(allowed, 3 * real["return_sd"])
            ours = float(np.mean([run[k] for run in runs]))
            yield f"first 10,000 steps, {fact}", name, real[fact], ours, allowed
    for run in args.runs:
        for row in trained_team(run, args.train):
            yield *row, None  # two teams may play differently: there is no tolerance


def draw(rows, path):
    """Real and simulated early training side by side, map by map."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.5))
    for axis, fact in zip(axes, ("return", "length"), strict=True):
        chosen = [row for row in rows if row[0].endswith(fact)]
        at = np.arange(len(chosen))
        axis.bar(
            at - 0.2, [row[2] for row in chosen], 0.4, yerr=[row[4] for row in chosen], label="game"
        )
        axis.bar(at + 0.2, [row[3] for row in chosen], 0.4, label="simulator")
        axis.set_xticks(at, [row[1] for row in chosen], rotation=40, ha="right", fontsize=8)
        axis.set_title(f"first 10,000 steps: {fact}; whiskers: tolerance", fontsize=9)
        axis.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main():
    trained = list(REAL["early_training"])
    parser = argparse.ArgumentParser(description="The simulator beside the real game.")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")  # one line
    parser.add_argument("--maps", nargs="+", default=trained, choices=trained, metavar="NAME",
                        help="maps whose early training is measured (all recorded)")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs per map (3)")
    parser.add_argument("--battles", type=int, default=4000, metavar="N", help="mirrored (4000)")
    parser.add_argument("--train", default=Path(__file__).parents[1] / "train.py", type=Path,
                        metavar="FILE", help="the trainer (../train.py)")  # fmt: skip
    parser.add_argument("--runs", nargs="+", default=(), type=Path, metavar="RUN_DIR",
                        help="trained networks, set beside recorded battles")  # fmt: skip
    parser.add_argument("--picture", default="fidelity.png", type=Path, metavar="FILE")
    args = parser.parse_args()
    if not (0 <= args.seeds <= 100 and 1 <= args.battles <= 100_000):
        parser.error("--seeds must be from 0 to 100 and --battles from 1 to 100000")
    if (args.seeds or args.runs) and not args.train.is_file():
        parser.error(f"there is no {args.train}: name a trainer by --train, or give --seeds 0")
    for run in args.runs:
        if not (run / "config.json").is_file():
            parser.error(f"{run} is not a run directory: it has no config.json")
    print(
        "| fact | map or unit | game | simulator | tolerance | holds |\n|---|---|--:|--:|--:|---|"
    )
    rows = []
    for row in measure(args):
        fact, where, real, ours, tolerance = row
        verdict = "|"  # two empty cells
        if tolerance is not None:
            holds = "yes" if abs(ours - real) <= tolerance else "**no**"
            verdict = f"{tolerance:.3g} | {holds}"
        print(f"| {fact} | {where} | {real:.4g} | {ours:.4g} | {verdict} |", flush=True)
        rows.append(row)
    if args.seeds:
        draw(rows, args.picture)
        print(f"\nPicture: {args.picture}")


if __name__ == "__main__":
    main()
