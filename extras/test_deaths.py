"""Tests of deaths.py: python -m pytest extras/test_deaths.py"""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import train
from extras import deaths


def test_first_death():
    frames = np.zeros((4, 2), [("health", float)])
    frames["health"] = [[5, 5], [5, 1], [5, 0], [0, 0]]
    assert deaths.first_death(frames) == 2
    assert np.isnan(deaths.first_death(frames[:2]))


def test_casualties_are_those_of_the_battles(tmp_path, capsys):
    """An untrained team on 3m: the same number of steps, wins and losses as evaluate counts."""
    run = tmp_path / "run"
    flags = "--env sim --map 3m --threads 1 --steps 100 --test-episodes 1 --n-envs 1 --run-dir"
    assert train.main([*flags.split(), str(run)]) == 0
    capsys.readouterr()
    assert deaths.main([str(run), "--battles", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    evaluate = f"--evaluate {run} --test-episodes 3 --n-envs 3 --json".split()
    assert train.main(evaluate) == 0
    episodes = json.loads(capsys.readouterr().out)["episodes"]
    assert found["steps"] == pytest.approx(np.mean([episode["length"] for episode in episodes]))
    assert found["won"] == pytest.approx(np.mean([episode["won"] for episode in episodes]))


def test_means_over_battles(monkeypatch, tmp_path):
    """Two made-up battles of one ally and two enemies; a side may lose nobody."""
    sim = SimpleNamespace(n_agents=1, world={"step_mul": 2})
    health = {
        "won": [[5, 5, 5], [5, 0, 5], [5, 0, 5], [5, 0, 5], [5, 0, 0]],
        "lost": [[5, 5, 5], [5, 5, 5], [0, 5, 5]],
    }

    def record(team, seed):
        result = "won" if seed % 2 else "lost"
        frames = np.zeros((len(health[result]), 3), [("health", float)])
        frames["health"] = health[result]
        return {"result": result}, frames, sim

    team = SimpleNamespace(flags=SimpleNamespace(map="3m", seed=1))
    monkeypatch.setattr(deaths, "open_team", lambda *_: team)
    monkeypatch.setattr(deaths, "record", record)
    assert deaths.casualties(tmp_path, 2) == {
        "map": "3m", "battles": 2, "won": 0.5, "steps": 1.5, "dead_allies": 0.5,
        "dead_enemies": 1.0, "first_ally_death": 2.0, "first_enemy_death": 1.0,
    }  # fmt: skip
    health["lost"] = health["won"]
    assert deaths.casualties(tmp_path, 2)["first_ally_death"] is None


def test_what_is_no_run_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        deaths.main([str(tmp_path)])
    assert stop.value.code == 2 and len(capsys.readouterr().err.strip().splitlines()) == 1
