"""Prints, as markdown, what every run beside this file was and how well it learned.

    python -m results.choice.table

A folder is named CANDIDATE_MAP_sSEED. Score: the mean test win rate over the run's own clock from
30 s to END or its end, a test holding until the next. Last: mean of three tests.
"""

import csv
import json
from itertools import groupby
from pathlib import Path

import numpy as np

from extras.tables import first_of_three

FLAGS = {
    "hidden_dim": "GRU",
    "batch_size": "batch",
    "train_interval": "episodes per step",
    "td_lambda": "lambda",
    "buffer_size": "replay",
    "target_update_interval": "target every",
    "lr": "lr",
}
USUAL = {
    "average_rate": 1.0,
    "target_rate": 1.0,
    "cut_traces": False,
    "steps": 400_000,
    "epsilon_anneal_steps": 50_000,
    "epsilon_finish": 0.05,
    "grad_norm_clip": 10.0,
    "gamma": 0.99,
}
BY_HAND = {  # in the code, where no flag tells of it
    "Y1": "agent begins orthogonal; target averaged (0.02)",
    "Y2": "agent begins orthogonal; target averaged (0.02)",
    "R5": "intervals in steps: 100, target 400",
    "R6": "intervals in steps: 100, target 400",
}
END = {"3m": 60, "2s3z": 120, "3s5z": 180}  # seconds


def cells(folder):
    """Score, when 90 % was reached, and the last three tests, of one run."""
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    steps, time, win = (
        np.array([float(row[name]) for row in rows])
        for name in ("t_env", "wall_time", "test_win_rate")
    )
    clock = np.arange(30, min(END[folder.name.split("_")[1]], time[-1] + 1))
    held = win[np.searchsorted(time, clock, side="right") - 1]
    score = f"{held.mean():.2f}" if len(clock) else "-"
    won = first_of_three(win)
    when = "-" if won is None else f"{steps[won] / 1e3:.0f}k, {time[won]:.0f} s"
    return score, when, f"{win[-3:].mean():.2f} at {steps[-1] / 1e3:.0f}k"


def main():
    head = ["candidate", *FLAGS.values(), "also", "map", "seeds", "score", "90 % at", "last"]
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    folders = sorted(path.parent for path in Path(__file__).parent.glob("*/config.json"))
    for (candidate, map_name), runs in groupby(folders, lambda f: f.name.split("_")[:2]):
        runs = list(runs)
        flags = json.loads((runs[0] / "config.json").read_text())["flags"]
        also = [
            f"{name.replace('_', ' ')} {flags[name]}".removesuffix(" True")
            for name, usual in USUAL.items()
            if flags.get(name, usual) != usual
        ]
        if flags.get("td_lambda_finish", flags["td_lambda"]) != flags["td_lambda"]:
            also.append(f"lambda rises to {flags['td_lambda_finish']}")
        if candidate in BY_HAND:
            also.append(BY_HAND[candidate])
        seeds = ", ".join(folder.name.split("_s")[-1] for folder in runs)
        line = [candidate, *(str(flags[name]) for name in FLAGS), "; ".join(also), map_name, seeds]
        line += ["; ".join(column) for column in zip(*map(cells, runs), strict=True)]
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
