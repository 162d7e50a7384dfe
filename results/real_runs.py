"""Prints real_runs.json: greedy test win rates of QMIX, VDN and IQL on StarCraft II, out of
training logs that others have put on GitHub.

    git clone https://github.com/OWNER/NAME runs/real/OWNER/NAME     # the six of REPOSITORIES
    git -C runs/real/OWNER/NAME checkout COMMIT                      # theirs
    python -m results.real_runs runs/real > results/real_runs.json

Taken are all runs of 1,000,000 steps or more in which PyMARL's own learner, agent and replay have
PyMARL's settings, those of `train.py --paper`. A run that begins like a longer one is its copy, and
what lies in a folder "results_modify..." is of changed code.
"""

import argparse
import json
from itertools import groupby
from pathlib import Path

import numpy as np

from extras.tables import STEPS

REPOSITORIES = {  # and the commits of what is in real_runs.json
    "Jonarain/pymarl": "07e060920125f2f76bb52710d9da2a9961fe2936",
    "Togmm/pymarl-monotone-qmix": "48e1c03f82b80164b6d65d67b18eb23810630519",
    "am-rutherford/pymarl": "0919e1ab9109b5ac8f719dde7c41ca4403849af1",
    "lkm929/pymar": "d25fde4cbfaf723bbdd35a50303c1cdba6aa645e",
    "miruyoun/PyMARL_RL_Project": "b901bdedf293a47ebc0555d8b5796af02624214d",
    "tlxxx/LINDA": "dea67ac930c4de16f2d106f1f3a078bab70547bd",
}
NEAR = 25_000  # steps: a win rate is the mean of the tests (one per 10,000 steps) so near
LEAST = 1_000_000  # steps of a run
PYMARL = {"learner": "q_learner", "mac": "basic_mac", "agent": "rnn", "runner": "episode"}
PYMARL |= {"batch_size": 32, "buffer_size": 5000, "lr": 0.0005, "epsilon_anneal_time": 50_000}
PYMARL |= {"target_update_interval": 200, "rnn_hidden_dim": 64, "double_q": True, "env": "sc2"}
ABOUT = (
    f"greedy test win rate at so many environment steps, each the mean of the tests within {NEAR:,}"
    " steps; public training logs on GitHub of PyMARL with its own settings, found by"
    " results/real_runs.py. Their authors may have changed PyMARL's code; versions of the game are"
    " not recorded."
)


def runs_of(folder, repository):
    """[(map, method, name, steps of the tests, their win rates)] of a clone in the folder."""
    runs = []
    for path in sorted((folder / repository).glob("**/sacred/**/config.json")):
        config = json.loads(path.read_text())
        try:
            info = json.loads(path.with_name("info.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):  # a run killed at once, or while writing
            continue
        method, steps = config.get("mixer") or "iql", info.get("test_battle_won_mean_T", [0])
        usual = all(config.get(name) == value for name, value in PYMARL.items())
        changed = config.get("prioritised_replay") or "results_modify" in path.as_posix()
        if changed or not usual or steps[-1] < LEAST:
            continue
        if method in ("qmix", "vdn", "iql"):
            name = path.parent.relative_to(folder).as_posix()
            wins = info["test_battle_won_mean"]
            runs.append((config["env_args"]["map_name"], method, name, steps, wins))
    return runs


def no_copy(run, runs):
    """Whether none of the runs has the same tests and goes on where this one ends."""
    game, method, name, steps, wins = run
    n = len(steps)
    same = [r for r in runs if (*r[:2], r[3][:n], r[4][:n]) == (game, method, steps, wins)]
    return all((n, name) >= (len(r[3]), r[2]) for r in same)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="real_runs.py", description="See the head of the file.")
    parser.add_argument("folder", type=Path, help="with a folder OWNER/NAME for each repository")
    folder = parser.parse_args(argv).folder
    runs = sorted(run for repository in REPOSITORIES for run in runs_of(folder, repository))
    if not runs:
        parser.error(f"no training logs below {folder}: clone {', '.join(REPOSITORIES)} there")
    rows, runs = [], [run for run in runs if no_copy(run, runs)]
    for (game, method), group in groupby(runs, lambda run: run[:2]):
        row = {"map": game, "method": method, "runs": []}
        for *_, name, steps, wins in group:
            near = {t: np.abs(np.array(steps) - t) <= NEAR for t in STEPS}
            rates = {t: round(np.mean(np.array(wins)[at]), 3) for t, at in near.items() if at.any()}
            row["runs"].append({"name": name, "win_rate": rates})
        rows.append(row)
    print(json.dumps({"about": ABOUT, "commits": REPOSITORIES, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
