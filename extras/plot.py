"""Pictures and tables of runs of train.py, in the manner of Figure 4 of the QMIX paper
(https://arxiv.org/abs/1803.11485): median test win rate over seeds, shaded between the quartiles.

    python -m extras.plot runs/*                        # curves.png, and a table on stdout
    python -m extras.plot runs/*3m* --out figures/3m.svg
    python -m extras.plot runs/* --table methods        # another table, no picture
    python -m extras.plot --results                     # those of README.md and results/README.md

Runs with the same environment, map and method are seeds of one curve. Runs of a method that differ
in other flags are kept apart, and labelled by what differs.

With --results every command in a page that stands in a line of its own as

    <!-- python -m extras.plot results/3m_s* --table win-rates -->

is carried out, and what it prints replaces all that follows up to the line <!-- end -->.
"""

import contextlib
import csv
import re
import shlex
import sys
from collections import defaultdict
from glob import glob
from pathlib import Path

import numpy as np

from extras import tables
from extras.files import read_config
from extras.flags import INDIFFERENT, Parser
from extras.run import say

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "results/README.md")
COMMAND_BEGINS = "<!-- python -m extras.plot "
COMMAND = re.compile(rf"^{COMMAND_BEGINS}([^\n]+) -->\n.*?^<!-- end -->$", re.M | re.S)
# Okabe and Ito's colours, told apart by everyone; always the same one for the same method.
COLOURS = dict(
    zip(
        tables.METHODS,
        ("#0072B2", "#D55E00", "#009E73", "#56B4E9", "#CC79A7", "#E69F00"),
        strict=True,
    )
)
SPARE_COLOURS = ["#000000", "#7F7F7F", "#8C564B", "#17BECF", "#BCBD22", "#9467BD"]
# Flags in which the seeds of one curve may differ.
OF_A_SEED = INDIFFERENT | {"seed", "env"}
# Columns of metrics.csv that are used here.
USED = ("t_env", "wall_time", "test_win_rate", "test_return")


def read_run(folder):
    """(game, flags, columns): (environment, map), the flags, and the columns USED as arrays of
    equal length. Raises ValueError, one line."""
    config, path = read_config(folder), folder / "metrics.csv"
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        if any(None in (*row, *row.values()) for row in rows):
            raise ValueError("a line has fewer or more values than the first")
        columns = {name: np.array([float(row[name]) for row in rows]) for name in USED}
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {type(error).__name__} {error}") from None
    if not rows:
        raise ValueError(f"{folder} has no test in its metrics.csv yet: wait, or leave it out")
    finite = all(np.isfinite(column).all() for column in columns.values())
    grow = (np.diff(columns["t_env"]) > 0).all() and (np.diff(columns["wall_time"]) >= 0).all()
    shares = ((columns["test_win_rate"] >= 0) & (columns["test_win_rate"] <= 1)).all()
    if not (finite and grow and shares):
        raise ValueError(
            f"{path} is damaged: numbers must be finite, t_env and wall_time must grow, and win"
            " rates must be from 0 to 1"
        )
    return (config["env"]["name"], config["env"]["map"]), config["flags"], columns


def readable(folders):
    """What read_run returns for each folder; those that cannot be read are left out with a warning.
    Raises ValueError, one line, if none is left."""
    runs, problems, unfinished, seen = [], [], [], {}
    for folder in dict.fromkeys(folders):
        try:
            runs.append(read_run(folder))
        except ValueError as error:
            problems.append(str(error))
            continue
        game, flags, columns = runs[-1]
        if columns["t_env"][-1] < flags.get("steps", 0):
            unfinished.append(str(folder))
        like = game, str({name: flags[name] for name in sorted(flags.keys() - INDIFFERENT)})
        if first := seen.get(like):
            twice = f"{first} and {folder} have the same flags and seed, and count as two runs"
            print(f"plot.py: warning: {twice}", file=sys.stderr)
        seen[like] = folder
    if not runs:
        raise ValueError("; ".join(problems) or "no run directory was given")
    for problem in problems:
        print(f"plot.py: warning: left out: {problem}", file=sys.stderr)
    if unfinished:
        names = ", ".join(unfinished)
        print(f"plot.py: warning: not finished, and taken as they are: {names}", file=sys.stderr)
    return runs


def group_runs(runs):
    """{(environment, map): {label: [columns of each run]}}."""
    games = defaultdict(lambda: defaultdict(list))
    for game, flags, columns in runs:
        games[game][flags["mixer"]].append((flags, columns))
    grouped = {}
    for game, methods in games.items():
        grouped[game] = defaultdict(list)
        for method, members in methods.items():
            names = {name for flags, _ in members for name in flags} - OF_A_SEED
            differ = sorted(
                name for name in names if len({setting(flags, name) for flags, _ in members}) > 1
            )
            for flags, columns in members:
                label = ", ".join([method, *(f"{name} {setting(flags, name)}" for name in differ)])
                grouped[game][label].append(columns)
    return grouped


def setting(flags, name):
    """As text. A flag that an older version did not have yet is like a switch that is off."""
    value = flags.get(name)
    return "unset" if value is None or value is False else str(value)


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


# --- the picture ---------------------------------------------------------------------------------


def draw(grouped, out, axis="t_env", real=False):
    """A panel per environment and map: win rates over steps (axis "t_env") or over wall-clock
    time ("wall_time"); with `real` the medians of real runs on StarCraft II as points."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.titlesize": 11})
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "the same file every time"})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    counts = defaultdict(set)  # label: numbers of seeds
    for methods in grouped.values():
        for label, members in methods.items():
            counts[label].add(len(members))
    labels = sorted(counts, key=tables.rank)
    spare = iter(SPARE_COLOURS * len(labels))
    colours = {label: COLOURS.get(label) or next(spare) for label in labels}

    across = min(len(grouped), 4)
    down = -(-len(grouped) // across)
    size = (3.7 * across + 0.8, 2.8 * down + 0.6)
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    for panel in axes.flat[len(grouped) :]:
        panel.set_axis_off()
    marks = []  # of the real runs' points, one per panel that has them
    for panel, ((env, map_name), methods) in zip(axes.flat, grouped.items(), strict=False):
        longest = max(columns[axis][-1] for runs in methods.values() for columns in runs)
        unit, scale = unit_of(axis, longest)
        for label in (label for label in labels if label in methods):
            x, low, middle, high = quartiles(methods[label], axis)
            band = {"color": colours[label], "alpha": 0.18, "lw": 0}
            panel.fill_between(x / scale, 100 * low, 100 * high, **band)
            panel.plot(x / scale, 100 * middle, lw=1.8, color=colours[label])
        if real and (points := tables.real_runs(map_name, "qmix")[0]):
            x = np.array([t for t in points if t <= 1.05 * longest])
            wins = np.array([np.median(points[t]) for t in x])
            marks += panel.plot(x / scale, 100 * wins, "ko", ms=5, mfc="none", clip_on=False)
        panel.set(xlabel=unit, xlim=(0, None), ylim=(-2, 102), yticks=range(0, 101, 25))
        panel.set_title(f"{map_name} ({tables.GAMES.get(env, env)})")
        panel.grid(color="0.9", lw=0.8)
    for panel in axes[:, 0]:
        panel.set_ylabel("test win rate (%)")
    lines = [plt.Line2D([], [], lw=1.8, color=colours[label]) for label in labels]
    seeds = {label: " to ".join(map(str, sorted({min(n), max(n)}))) for label, n in counts.items()}
    texts = [f"{label} ({seeds[label]} seed{'s' * (seeds[label] != '1')})" for label in labels]
    if marks:
        lines, texts = [*lines, marks[0]], [*texts, "qmix on StarCraft II (median of real runs)"]
    # about 12 letters to the inch, and 7 for the line before them
    columns = max(1, int(size[0] * 12 / (max(map(len, texts)) + 7)))
    figure.legend(lines, texts, loc="outside upper center", ncols=columns, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=160, metadata={"Date": None} if out.suffix == ".svg" else None)
    plt.close(figure)


def unit_of(axis, longest):
    """What is written below a panel, and by what its numbers are divided."""
    if axis == "t_env":
        return "environment steps (thousands)", 1000
    return ("minutes", 60) if longest < 3 * 3600 else ("hours", 3600)


# --- commands ------------------------------------------------------------------------------------


def carry_out(args):
    """The table that the flags ask for; the picture, if they ask for one, is written to a file.
    Raises ValueError or OSError, one line."""
    if args.table in tables.OF_FILES:
        return tables.OF_FILES[args.table](args.runs)
    grouped = group_runs(readable(args.runs))
    table = tables.make(args.table or "win-rates", grouped)
    if args.out:
        draw(grouped, args.out, "wall_time" if args.time else "t_env", args.real)
    return table


def renewed(page, pictures=True):
    """The text of a page, with all its commands carried out. Raises ValueError or OSError."""

    def anew(found):
        command = found[1]
        words = (sorted(glob(word)) or [word] for word in shlex.split(command))
        args = parse([path for paths in words for path in paths])
        if not pictures:
            args.out = None
        return f"{COMMAND_BEGINS}{command} -->\n\n{carry_out(args)}\n\n<!-- end -->"

    with contextlib.chdir(ROOT):
        text = Path(page).read_text()
        begun = sum(line.startswith(COMMAND_BEGINS) for line in text.splitlines())
        if begun != len(COMMAND.findall(text)):
            raise ValueError(f"{page}: a command without a line <!-- end --> below it")
        return COMMAND.sub(anew, text)


def parse(argv):
    parser = Parser(
        prog="plot.py", description="Learning curves and tables: median and quartiles over seeds."
    )
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUN_DIR",
        help="made by train.py; with --table two-step, files of two_step_game.py --json; with"
        " --table evaluated, of lines MAP_METHOD_sSEED and what train.py --evaluate prints last",
    )
    parser.add_argument(
        "--table",
        choices=[*tables.TABLES, *tables.OF_FILES],
        help="which table to print, without a picture unless there is --out; None: win-rates",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help=".png, .svg or .pdf; None: curves.png, or no picture if there is --table",
    )
    parser.add_argument("--time", action="store_true", help="draw over time instead of steps")
    parser.add_argument(
        "--real",
        action="store_true",
        help="draw the win rates of real runs on StarCraft II (results/real_runs.json) as points",
    )
    parser.add_argument(
        "--results",
        action="store_true",
        help=f"renew all tables and pictures of {' and '.join(PAGES)} from the raw files",
    )
    args = parser.parse_args(argv)
    if args.results == bool(args.runs):
        parser.error("give run directories, or --results and none")
    if args.results and (args.table or args.out or args.time or args.real):
        parser.error("--results has its commands in the pages: leave out other flags")
    if args.out is None and not args.table and not args.results:
        args.out = Path("curves.png")
    if args.out and not args.out.suffix:
        args.out = args.out.with_suffix(".png")
    if args.table in tables.OF_FILES and args.out:
        parser.error(f"--table {args.table} has no picture: leave out --out")
    if args.out and args.out.suffix not in (".png", ".svg", ".pdf"):
        parser.error(f"--out {args.out} must end in .png, .svg or .pdf")
    if (args.real or args.time) and not args.out:
        parser.error("--real and --time are for the picture: give --out, too")
    if args.real and args.time:
        parser.error("--real knows steps only: leave out --time")
    return args


def main(argv=None):
    args = parse(argv)
    with Parser(prog="plot.py").refuses():
        if args.results:
            pages = {page: renewed(page) for page in PAGES}
            for page, text in pages.items():
                (ROOT / page).write_text(text)
                say(f"{page}: {len(COMMAND.findall(text))} commands carried out")
            return
        say(carry_out(args))
    if args.out:
        say(f"wrote {args.out}")


if __name__ == "__main__":
    sys.exit(main())
