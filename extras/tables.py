"""Tables of finished runs as markdown, and the statistics in them.

QMIX (https://arxiv.org/abs/1803.11485). Not a script: plot.py reads the runs and prints what TABLES
makes of them.

maps below is {map: {label: runs}}, a run a dictionary of arrays of equal length: t_env, wall_time
(seconds), test_win_rate and test_return, an element per test. A label is a method, with the flags
in which it differs from others of that method. "Final" is the last test.
"""

import json
import re
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import numpy as np

from two_step_game import PAPER, STATES

METHODS = ("qmix", "vdn", "iql", "qmix-lin", "qmix-ns", "vdn-s")
GAMES = {"sim": "simulator", "sc2": "StarCraft II"}  # how a table calls an environment
LEVEL = 0.9  # a win rate that counts as won
RESAMPLES = 2000  # of the bootstrap
STEPS = (100_000, 200_000, 300_000, 500_000, 700_000, 750_000, 1_000_000, 1_500_000, 2_000_000)
# Return of the greedy policies in the two-step game, by the paper.
PAPER_RETURN = {"qmix": 8, "qmix-ns": 8, "qmix-lin": 7, "vdn-s": 7, "vdn": 7}


# --- what others measured ------------------------------------------------------------------------


@cache
def of_others(name):
    """Win rates on StarCraft II, and where they come from: results/published.json, out of papers,
    or results/real_runs.json, out of training logs."""
    path = Path(__file__).resolve().parent.parent / "results" / f"{name}.json"
    return json.loads(path.read_text())


def real_runs(map_name, method):
    """What is known of real runs on StarCraft II: ({steps: win rates (runs,)}, [repository]); two
    times nothing if there are none."""
    for row in of_others("real_runs")["rows"]:
        if (row["map"], row["method"]) == (map_name, method):
            wins = {}
            for run in row["runs"]:
                for steps, win in run["win_rate"].items():
                    wins.setdefault(int(steps), []).append(win)
            return wins, ["/".join(run["name"].split("/")[:2]) for run in row["runs"]]
    return {}, []


# --- statistics ----------------------------------------------------------------------------------


def iqm(scores):
    """Interquartile mean over the last axis, (..., n) -> (...): a quarter of the scores, rounded
    down, is left out at each end (https://arxiv.org/abs/2108.13264)."""
    n = scores.shape[-1]
    return np.sort(scores)[..., n // 4 : n - n // 4].mean(axis=-1)


def improvement(x, y):
    """P(X > Y) + P(X = Y) / 2 for a score of each side, drawn at random: (..., n), (..., m) ->
    (...). It is Mann and Whitney's U / (n m)."""
    return (1 + np.sign(x[..., :, None] - y[..., None, :]).mean(axis=(-2, -1))) / 2


def resampled(scores, rng):
    """Stratified bootstrap: of each map's scores (n,) as many again, drawn with replacement from
    that map alone, (RESAMPLES, n). A list with an array per map."""
    return [rng.choice(of_map, (RESAMPLES, len(of_map))) for of_map in scores]


def with_interval(value, resamples, seeds):
    """A number with its 95 % interval, the percentiles of the resamples (RESAMPLES,). A map with
    one seed has nothing to resample: no interval then, as its width would say nothing."""
    if seeds == 1:
        return f"{value:.2f} (one seed)"
    low, high = np.percentile(resamples, (2.5, 97.5))
    return f"{value:.2f} ({low:.2f} - {high:.2f})"


def first_of_three(wins):
    """Index of the first of three consecutive tests that were won by LEVEL on average; None if
    there are no such three."""
    means = (wins[:-2] + wins[1:-1] + wins[2:]) / 3
    there = np.flatnonzero(means >= LEVEL - 1e-6)  # metrics.csv has six digits
    return int(there[0]) if len(there) else None


# --- cells ---------------------------------------------------------------------------------------


def markdown(head, rows):
    """Columns are padded, so that a terminal shows a table, too."""
    lines = [head, ["---"] * len(head), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    lines[1] = ["-" * width for width in widths]
    padded = (zip(line, widths, strict=True) for line in lines)
    return "\n".join(f"| {' | '.join(cell.ljust(n) for cell, n in line)} |" for line in padded)


def each_row(maps):
    """(map, label, runs), the methods of a map in the order of METHODS."""
    for map_name, labels in maps.items():
        yield from ((map_name, label, labels[label]) for label in sorted(labels, key=rank))


def method_of(label):
    return label.split(",")[0]


def rank(label):
    """Where a label stands in legends and tables."""
    method = method_of(label)
    return METHODS.index(method) if method in METHODS else len(METHODS), label


def final_scores(runs):
    return np.array([run["test_win_rate"][-1] for run in runs])


def final_win_rate(runs):
    low, middle, high = np.percentile(final_scores(runs), (25, 50, 75))
    return f"{middle:.2f}" + f", {low:.2f} - {high:.2f}" * (len(runs) > 1)


def steps_done(runs):
    ends = sorted({int(run["t_env"][-1]) for run in runs})
    return " to ".join(f"{end:,}" for end in dict.fromkeys((ends[0], ends[-1])))


def until_won(runs):
    """Two cells: steps and seconds until the first of three tests with 90 %, median and slowest.
    The median of an even number of runs is the later of the two in the middle."""
    first = [first_of_three(run["test_win_rate"]) for run in runs]
    when = [
        (np.inf, np.inf) if i is None else (run["t_env"][i], run["wall_time"][i])
        for run, i in zip(runs, first, strict=True)
    ]
    never, cells = f"never ({first.count(None)} of {len(runs)})", []
    for percent in (50, 100):
        steps, seconds = np.percentile(when, percent, axis=0, method="higher")
        cells.append(never if steps == np.inf else f"{steps / 1e3:.0f}k steps, {seconds:.0f} s")
    return cells


# --- tables --------------------------------------------------------------------------------------


def win_rates(game, maps):
    """Final win rates, and how soon 90 % was reached."""
    head = ["map", "method", "seeds", "steps", f"final win rate, {game}: median, quartiles"]
    head += ["90 % at, median", "90 % at, slowest"]
    rows = [
        [name, label, str(len(runs)), steps_done(runs), final_win_rate(runs), *until_won(runs)]
        for name, label, runs in each_row(maps)
    ]
    return markdown(head, rows)


def all_maps(game, maps):
    """Final win rates beside those that others measured on StarCraft II, in their own columns."""
    head = ["map", "method", "seeds", "steps", f"final win rate, {game}: median, quartiles"]
    head += ["StarCraft II, real runs: median, range (runs)", "4.6.2, SMAC paper", "4.10, tuned"]
    rows, sources = [], set()
    for name, label, runs in each_row(maps):
        method, cell = method_of(label), ""
        real, repositories = real_runs(name, method)
        if reached := [t for t in real if t <= min(run["t_env"][-1] for run in runs)]:
            wins = real[max(reached)]
            cell = f"{np.median(wins):.2f}"
            cell += f", {min(wins):.2f} - {max(wins):.2f}" * (len(wins) > 1)
            cell += f" ({len(wins)}) at {max(reached):,}"
            sources.update(repositories)
        tables = (of_others("published")[source]["percent"] for source in ("smac_paper", "tuned"))
        percents = (table.get(name, {}).get(method) for table in tables)
        papers = ["" if percent is None else f"{percent / 100:.2f}" for percent in percents]
        here = [str(len(runs)), steps_done(runs), final_win_rate(runs)]
        rows.append([name, label, *here, cell, *papers])
    papers = of_others("published")
    texts = [markdown(head, rows), f"SMAC paper: {papers['smac_paper']['about']}"]
    if any(row[-1] for row in rows):
        texts.append(f"Tuned: {papers['tuned']['about']}")
    if sources:
        names = ", ".join(sorted(sources))
        texts.append(f"Real runs: {of_others('real_runs')['about']} Repositories: {names}.")
    return "\n\n".join(texts)


def by_steps(game, maps):
    """Win rates after so many steps, and those of real runs below them. A run counts where it has
    a test within 2 % of the steps; runs that have none there are missing from the median."""
    rows, reached = [], 0
    for name, label, runs in each_row(maps):
        wins = []  # of each of STEPS
        for steps in STEPS:
            nearest = [(run, abs(run["t_env"] - steps).argmin()) for run in runs]
            there = [(run, i) for run, i in nearest if abs(run["t_env"][i] - steps) <= 0.02 * steps]
            wins.append([run["test_win_rate"][i] for run, i in there])
        reached = max([reached, *(i + 1 for i, some in enumerate(wins) if some)])
        n, real = len(runs), real_runs(name, method_of(label))[0]
        rows.append([name, label, f"{game}, {n}", *(median_of(some, n) for some in wins)])
        if real:
            n = max(map(len, real.values()))
            cells = (median_of(real.get(steps), n) for steps in STEPS)
            rows.append([name, label, f"StarCraft II, {n}", *cells])
    head = ["map", "method", "played by, runs", *(f"{steps:,}" for steps in STEPS)]
    end = 3 + reached  # beyond the last test here, the real runs' columns would stand alone
    return markdown(head[:end], [row[:end] for row in rows])


def median_of(wins, n):
    """A cell: the median of win rates, and their number where they are fewer than n runs."""
    return f"{np.median(wins):.2f}" + f" ({len(wins)})" * (len(wins) < n) if wins else ""


def methods(game, maps):
    """Interquartile means over maps and seeds, and how probably QMIX is better than each method,
    with stratified bootstrap intervals. Of the maps, those on which all methods were run."""
    labels = sorted({label for of_map in maps.values() for label in of_map}, key=rank)
    common = [name for name in maps if all(label in maps[name] for label in labels)]
    if not common:
        raise ValueError(f"no map was played by all of {', '.join(labels)}: plot fewer of them")
    scores = {label: [final_scores(maps[name][label]) for name in common] for label in labels}
    rng = np.random.default_rng(0)
    again = {label: resampled(scores[label], rng) for label in labels}
    fewest = {label: min(map(len, scores[label])) for label in labels}  # seeds on a map

    def better(x, y):
        """Mean over maps of the probability that a run of x does better than one of y."""
        return np.mean([improvement(*pair) for pair in zip(x, y, strict=True)], axis=0)

    rows = []
    for label in labels:
        means = iqm(np.hstack(scores[label])), iqm(np.hstack(again[label]))
        mean = with_interval(*means, fewest[label])
        rows.append([label, str(sum(map(len, scores[label]))), mean])
        if "qmix" in labels:
            chances = better(scores["qmix"], scores[label]), better(again["qmix"], again[label])
            cell = with_interval(*chances, min(fewest["qmix"], fewest[label]))
            rows[-1].append("" if label == "qmix" else cell)
    head = ["method", "runs", f"final win rate, {game}: interquartile mean (95 %)"]
    if "qmix" in labels:
        head.append("QMIX is better with probability (95 %), a tie counting half")
    return f"{markdown(head, rows)}\n\nOver the maps {', '.join(common)}."


def returns(game, maps):
    """For games without a win rate: the mean return of the first test and of the last."""
    most = max(len(runs) for _, _, runs in each_row(maps))
    rows = []
    for name, label, runs in each_row(maps):
        ends = [run["test_return"][[0, -1]] for run in runs]
        cells = [f"{first:.1f} to {last:.1f}" for first, last in ends] + [""] * (most - len(ends))
        rows.append([name, label, steps_done(runs), *cells])
    head = [f"{game}, game", "method", "steps", *(f"run {i + 1}" for i in range(most))]
    return markdown(head, rows)


def two_step(paths):
    """The paper's Table 2 from files with a line of `two_step_game.py --json` per run: mean and
    standard deviation over seeds. Raises ValueError, one line, if they are something else."""
    by_kind = defaultdict(list)
    for path in paths:
        try:
            for line in path.read_text().splitlines():
                result = json.loads(line)
                values = np.array([result[state] for state in STATES]).reshape(3, 4)  # 2x2 in a row
                by_kind[result["mixer"]].append((values, result["greedy_return"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not what two_step_game.py --json prints: {error!r}"
            ) from None
    if not by_kind:
        raise ValueError("these files hold no result of two_step_game.py --json")
    rows = []
    for kind in sorted(by_kind, key=rank):
        values = np.array([values for values, _ in by_kind[kind]])  # (seeds, 3, 4)
        counts = sorted(Counter(best for _, best in by_kind[kind]).items(), reverse=True)
        of = f"{len(values)} seed{'s' * (len(values) != 1)}"
        found = ", ".join(f"{best:g}: {n} of {of}" for best, n in counts)
        expected = str(PAPER_RETURN.get(kind, ""))
        for i, state in enumerate(STATES):
            spread = zip(values.mean(axis=0)[i], values.std(axis=0)[i], strict=True)
            paper = np.ravel(PAPER[kind][i]) if kind in PAPER else []
            name, *greedy = (kind, found, expected) if i == 0 else ("", "", "")
            cells = [f"{mean:.2f} ± {sd:.2f}" for mean, sd in spread]
            there = ", ".join(f"{q:.2f}" for q in paper)
            rows.append([name, state.replace("_", " "), *cells, there, *greedy])
    head = ["method", "Q_tot in", "A, A", "A, B", "B, A", "B, B", "in the paper"]
    return markdown([*head, "greedy return", "in the paper"], rows)


def evaluated(paths):
    """Shares of battles won by trained networks, side by side: a row per map, a column per method,
    a number per seed. From files with lines "MAP_METHOD_sSEED test_win_rate=..." and whatever,
    which is a run's name and the last line of `train.py --evaluate`. Raises ValueError."""
    maps = defaultdict(lambda: defaultdict(list))
    lines = [(path, x) for path in paths for x in path.read_text(errors="replace").splitlines()]
    for path, line in lines:
        found = re.fullmatch(r"(?:.*/)?(\S+)_([a-z-]+)_s\d+ test_win_rate=([\d.]+)( .*)?", line)
        if not found or found[2] not in METHODS:
            what = "MAP_METHOD_sSEED and what train.py --evaluate prints"
            raise ValueError(f"{path}: not {what}: {line!r}")
        maps[found[1]][found[2]].append(found[3])
    labels = sorted({method for of_map in maps.values() for method in of_map}, key=rank)
    rows = [[name, *(", ".join(maps[name][method]) for method in labels)] for name in maps]
    return markdown(["map", *labels], rows)


# --table NAME: a function of (game, maps), called once for each environment.
TABLES = {
    "win-rates": win_rates,
    "all-maps": all_maps,
    "by-steps": by_steps,
    "methods": methods,
    "returns": returns,
}
# The same, of files that are no runs: a function of their paths.
OF_FILES = {"two-step": two_step, "evaluated": evaluated}


def make(kind, grouped):
    """The table of that kind from {(environment, map): {label: runs}}, one per environment."""
    environments = defaultdict(dict)
    for (env, map_name), labels in grouped.items():
        environments[env][map_name] = labels
    texts = (TABLES[kind](GAMES.get(env, env), maps) for env, maps in environments.items())
    return "\n\n".join(texts)
