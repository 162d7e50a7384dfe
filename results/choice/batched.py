"""Prints, as markdown, how well the runs of batched.csv learned: README.md says what they are.

    python -m results.choice.batched

A figure is the mean test win rate from 60,000 steps to the run's last test, over four seeds.
"""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

SKIPPED = 60_000  # environment steps in which nothing wins yet


def main():
    means = defaultdict(list)  # (stage, column, change) -> one figure for each seed
    with (Path(__file__).parent / "batched.csv").open() as file:
        for run in csv.DictReader(file):
            win_rates = np.array(run["test_win_rates"].split(), float)
            late = win_rates[SKIPPED // int(run["test_interval"]) :].mean()
            column = f"{run['map']}, GRU {run['hidden_dim']}, 1 per {run['train_interval']}"
            means[run["stage"], column, run["change"]].append(late)
    for stage in sorted({key[0] for key in means}):
        columns = list(dict.fromkeys(key[1] for key in means if key[0] == stage))
        changes = dict.fromkeys(key[2] for key in means if key[0] == stage)
        print(f"| change | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
        table = [(change, *(means[stage, c, change] for c in columns)) for change in changes]
        for change, *cells in sorted(table, key=lambda row: -np.mean(row[1:])):
            print(f"| {change} | {' | '.join(f'{np.mean(cell):.2f}' for cell in cells)} |")
        print()


if __name__ == "__main__":
    main()
