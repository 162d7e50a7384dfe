"""Learning curves of runs of train.py, in the manner of Figure 4 of the QMIX paper
(https://arxiv.org/abs/1803.11485): median test win rate over seeds, shaded between the quartiles.

    python -m extras.plot runs/*                 # curves.png, curves.svg, and a table on stdout
    python -m extras.plot runs/*3m* --out figures/3m

Runs with the same environment, map and method are seeds of one curve. Runs of a method that differ
in other flags are kept apart, and labelled by what differs.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from extras.files import read_config
from extras.flags import NOT_KEPT, Parser
from extras.run import say

# Okabe and Ito's colours, told apart by everyone; always the same one for the same method.
COLOURS = {
    "qmix": "#0072B2",
    "vdn": "#D55E00",
    "iql": "#009E73",
    "qmix-lin": "#56B4E9",
    "qmix-ns": "#CC79A7",
    "vdn-s": "#E69F00",
}
SPARE_COLOURS = ["#000000", "#7F7F7F", "#8C564B", "#17BECF", "#BCBD22", "#9467BD"]
# Flags in which the seeds of one curve may differ.
INDIFFERENT = {*NOT_KEPT, "seed", "device", "threads", "save_buffer", "sc2_timeout", "env"}


def read_run(folder):
    """(game, flags, columns): (environment, map), the flags, and arrays t_env, wall_time and
    test_win_rate of equal length. Raises ValueError, one line."""
    config, path = read_config(folder), folder / "metrics.csv"
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        names = ("t_env", "wall_time", "test_win_rate")
        columns = {name: np.array([float(row[name]) for row in rows]) for name in names}
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {type(error).__name__} {error}") from None
    if not rows:
        raise ValueError(f"{folder} has no test in its metrics.csv yet: wait, or leave it out")
    finite = all(np.isfinite(column).all() for column in columns.values())
    if not finite or (np.diff(columns["t_env"]) <= 0).any():
        raise ValueError(f"{path} is damaged: numbers must be finite, and t_env must grow")
    return (config["env"]["name"], config["env"]["map"]), config["flags"], columns


def readable(folders):
    """What read_run returns for each folder; those that cannot be read are left out with a warning.
    Raises ValueError, one line, if none is left."""
    runs, problems = [], []
    for folder in dict.fromkeys(folders):
        try:
            runs.append(read_run(folder))
        except ValueError as error:
            problems.append(str(error))
    if not runs:
        raise ValueError("; ".join(problems))
    for problem in problems:
        print(f"plot.py: warning: left out: {problem}", file=sys.stderr)
    return runs


def rank(label):
    """Where a method's curve stands in legends and tables."""
    method = label.split(",")[0]
    return list(COLOURS).index(method) if method in COLOURS else len(COLOURS)


def group_runs(runs):
    """{(environment, map): {label: [columns of each run]}}."""
    games = defaultdict(lambda: defaultdict(list))
    for game, flags, columns in runs:
        games[game][flags["mixer"]].append((flags, columns))
    grouped = {}
    for game, methods in games.items():
        grouped[game] = defaultdict(list)
        for method, members in methods.items():
            names = {name for flags, _ in members for name in flags} - INDIFFERENT
            differ = sorted(
                name for name in names if len({str(flags.get(name)) for flags, _ in members}) > 1
            )
            for flags, columns in members:
                label = ", ".join([method, *(f"{name} {flags.get(name)}" for name in differ)])
                grouped[game][label].append(columns)
    return grouped


def quartiles(members, axis):
    """Win rates of several runs on one grid: x, and the 25th, 50th and 75th percentile there.

    Between its tests a run is interpolated. The grid ends where the shortest run does, because a
    median over the few runs that are left would jump for no reason.
    """
    start = max(columns[axis][0] for columns in members)
    end = min(columns[axis][-1] for columns in members)
    x = np.unique(np.concatenate([columns[axis] for columns in members]))
    x = x[(x >= start) & (x <= end)]
    wins = [np.interp(x, columns[axis], columns["test_win_rate"]) for columns in members]
    return x, *np.percentile(wins, (25, 50, 75), axis=0)


def reached(members, axis, level):
    """Median over runs of when the test win rate first was `level`; inf if half of them never
    had it."""
    first = []
    for columns in members:
        there = np.flatnonzero(columns["test_win_rate"] >= level)
        first.append(columns[axis][there[0]] if len(there) else np.inf)
    return float(np.percentile(first, 50, method="higher"))


def print_table(grouped):
    head = f"{'environment':12}{'map':14}{'method':26}{'runs':>5}{'steps':>10}{'final':>7}"
    say(f"{head}{'quartiles':>15}{'50 % at':>18}{'90 % at':>18}")
    for (env, map_name), methods in grouped.items():
        for label, members in sorted(methods.items(), key=lambda item: rank(item[0])):
            low, middle, high = np.percentile(
                [c["test_win_rate"][-1] for c in members], (25, 50, 75)
            )
            steps = np.median([c["t_env"][-1] for c in members])
            when = []
            for level in (0.5, 0.9):
                t_env, seconds = (reached(members, axis, level) for axis in ("t_env", "wall_time"))
                when.append("never" if t_env == np.inf else f"{t_env / 1e3:.0f}k, {seconds:.0f} s")
            say(
                f"{env:12}{map_name:14}{label:26}{len(members):>5}{steps:>10.0f}{middle:>7.3f}"
                f"{f'{low:.3f} - {high:.3f}':>15}{when[0]:>18}{when[1]:>18}"
            )


def draw(grouped, out):
    """One column per environment and map: above against steps, below against wall-clock time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "svg.fonttype": "none"})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    counts = defaultdict(set)  # label: numbers of seeds
    for methods in grouped.values():
        for label, members in methods.items():
            counts[label].add(len(members))
    labels = sorted(counts, key=lambda label: (rank(label), label))
    spare = iter(SPARE_COLOURS * len(labels))
    colours = {label: COLOURS.get(label) or next(spare) for label in labels}

    size = (3.7 * len(grouped) + 0.8, 6.2)
    figure, axes = plt.subplots(2, len(grouped), figsize=size, squeeze=False, layout="constrained")
    for column, ((env, map_name), methods) in zip(axes.T, grouped.items(), strict=True):
        longest = max(columns["wall_time"][-1] for runs in methods.values() for columns in runs)
        unit, seconds = ("minutes", 60) if longest < 3 * 3600 else ("hours", 3600)
        abscissas = (("t_env", 1000, "environment steps (thousands)"), ("wall_time", seconds, unit))
        for panel, (axis, scale, name) in zip(column, abscissas, strict=True):
            for label in labels:
                if label in methods:
                    x, low, middle, high = quartiles(methods[label], axis)
                    band = {"color": colours[label], "alpha": 0.18, "lw": 0}
                    panel.fill_between(x / scale, 100 * low, 100 * high, **band)
                    panel.plot(x / scale, 100 * middle, lw=1.8, color=colours[label])
            panel.set(xlabel=name, xlim=(0, None), ylim=(-2, 102), yticks=range(0, 101, 25))
            panel.grid(color="0.9", lw=0.8)
        column[0].set_title(f"{map_name} ({env})")
    for panel in axes[:, 0]:
        panel.set_ylabel("test win rate (%)")
    lines = [plt.Line2D([], [], lw=1.8, color=colours[label]) for label in labels]
    seeds = {label: " to ".join(map(str, sorted({min(n), max(n)}))) for label, n in counts.items()}
    texts = [f"{label} ({seeds[label]} seed{'s' * (seeds[label] != '1')})" for label in labels]
    columns = max(1, int(size[0] * 12 / (max(map(len, texts)) + 7)))
    figure.legend(lines, texts, loc="outside upper center", ncols=columns, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "svg"):
        figure.savefig(f"{out}.{suffix}", dpi=160)
    plt.close(figure)


def main(argv=None):
    parser = Parser(prog="plot.py", description="Learning curves: median and quartiles over seeds.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="made by train.py")
    parser.add_argument(
        "--out", type=Path, default=Path("curves"), metavar="PATH", help="without .png"
    )
    args = parser.parse_args(argv)
    try:
        grouped = group_runs(readable(args.runs))
        draw(grouped, args.out)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print_table(grouped)
    say(f"wrote {args.out}.png and {args.out}.svg")


if __name__ == "__main__":
    sys.exit(main())
