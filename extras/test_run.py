"""Tests of runs: what is logged and kept, evaluation, bad input.

QMIX (https://arxiv.org/abs/1803.11485). Run them with: python -m pytest extras/test_run.py

Most runs here play the two-step game with networks of a few units and take a fraction of a second.
"""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import envs
import train
from extras import benchmark, files, plot, run, same_as_pymarl
from extras.flags import NOT_KEPT
from starcraft import simulator
from test_qmix import (
    TINY,
    equal,
    learner_state,
    metrics,
    no_waiting_for_the_disk,  # noqa: F401 a fixture that all tests here use
    start,
)


def resume(folder, *more):
    return train.main(["--resume", str(folder), *more])


def same_run(a, b):
    return metrics(a) == metrics(b) and equal(learner_state(a), learner_state(b))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert start(folder) == 0
    return folder


# --- the loop ------------------------------------------------------------------------------------


def test_a_run_that_could_never_learn_is_refused(tmp_path, monkeypatch, capsys):
    """Memory for 6 of 8 episodes in a batch; episodes may be shorter, but that is not known."""
    longest = train.ReplayBuffer(40, 4, 2, 2, 2, 3, 3).nbytes / 44
    monkeypatch.setattr(train, "available_memory", lambda: 6 * longest / train.MEMORY_SHARE)
    with pytest.raises(SystemExit):
        start(tmp_path / "run")
    err = capsys.readouterr().err
    assert "--batch-size 8: so many of the longest" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(train, "available_memory", lambda: 9 * longest / train.MEMORY_SHARE)
    assert start(tmp_path / "run") == 0


def test_metrics_and_config(whole):
    rows, config = metrics(whole), json.loads((whole / "config.json").read_text())
    assert [int(row["t_env"]) for row in rows] == [0, 100, 200, 300, 400, 500, 600]
    assert [int(row["episodes"]) for row in rows] == [0, 48, 100, 148, 200, 248, 300]
    assert rows[0]["loss"] == rows[0]["train_return"] == ""
    assert [float(row["epsilon"]) for row in rows] == pytest.approx(
        [train.linear(t, 1.0, 0.05, 300) for t in range(0, 601, 100)], rel=1e-5
    )
    for row in rows[1:]:
        assert 0 < float(row["loss"]) < 100 and float(row["grad_norm"]) > 0
        assert 0 <= float(row["train_win_rate"]) <= 1 and 0 <= float(row["train_return"]) <= 8
    for row in rows:
        win, mean = float(row["test_win_rate"]), float(row["test_return"])
        assert win == (mean == 8) and mean in (0, 1, 7, 8) and row["test_episode_length"] == "2"
    assert config["env"]["name"] == config["env"]["map"] == "two_step"
    assert config["flags"]["lr"] == 2e-3 and config["flags"]["n_envs"] == 4
    assert config["versions"]["torch"] == torch.__version__
    kept = vars(train.parse_args(TINY)[0]).keys() - set(NOT_KEPT)
    assert config["flags"].keys() == kept, "every flag is in config.json"


def test_tensorboard_has_the_same_scalars(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole)).Reload()
    for name in ("test_return", "loss", "epsilon"):
        seen = {event.step: event.value for event in events.Scalars(name)}
        rows = {int(row["t_env"]): float(row[name]) for row in metrics(whole) if row[name]}
        assert seen == pytest.approx(rows, rel=1e-5)


def test_same_seed_same_run(whole, tmp_path):
    start(tmp_path / "same")
    start(tmp_path / "other", "--seed", "2")
    assert same_run(whole, tmp_path / "same")
    assert metrics(whole) != metrics(tmp_path / "other")


def test_a_log_file_gets_plain_lines(whole, tmp_path, capsys):
    start(tmp_path / "run")
    out, err = capsys.readouterr()
    assert "\r" not in out + err and "%|" not in err
    assert len([line for line in out.splitlines() if line.startswith("t_env")]) == 7
    assert "Done: 600 steps" in out and str(tmp_path / "run") in out


def test_rows_average_over_what_came_since_the_last_one(tmp_path, monkeypatch):
    """What the loss returns becomes a column and a scalar by itself."""
    calls, update = [], train.QLearner.update

    def spying(self, batch):
        calls.append(float(len(calls)))
        return update(self, batch) | {"mine": torch.tensor(calls[-1])}

    monkeypatch.setattr(train.QLearner, "update", spying)
    start(tmp_path / "run")
    rows = metrics(tmp_path / "run")
    assert rows[0]["mine"] == ""
    for before, row in itertools.pairwise(rows):
        first, end = int(before["updates"]), int(row["updates"])
        assert float(row["mine"]) == pytest.approx(np.mean(calls[first:end]), rel=1e-5)


@pytest.mark.parametrize("name", ["epsilon", "train_return", "loss"])
def test_a_statistic_with_the_name_of_a_column_is_refused(tmp_path, monkeypatch, name):
    loss = train.QLearner.loss

    def with_that_name(*args):
        value, stats = loss(*args)
        return value, stats | {name: torch.tensor(0.0)}

    monkeypatch.setattr(train.QLearner, "loss", with_that_name)
    with pytest.raises((ValueError, TypeError), match=f"has a column {name}: rename|'{name}'"):
        start(tmp_path / "run")


def test_report_warns_when_the_win_rate_collapses():
    def warned(wins):
        row = {"t_env": 1, "wall_time": 1.0, "test_return": 1.0, "env_steps_per_s": 1.0}
        return "Warning" in run.report([row | {"test_win_rate": win} for win in wins], 9)

    assert warned([0.2, 0.9, 0.4]) and warned([0.5, 0.2])
    assert not warned([0.9, 0.5]) and not warned([0.4, 0.0]) and not warned([0.9, 0.4, 0.3])


# --- bad input -----------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self):
        return os.system, ("touch boom",)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        (config if name in config else config["flags"])[name] = value
    (folder / "config.json").write_text(json.dumps(config))


def other_shapes(folder):
    spoil_config(folder, hidden_dim=16)


def other_game(folder):
    spoil_config(folder, env={"name": "sim", "map": "3m"}, map="3m")


def no_checkpoint(folder):
    for path in folder.glob("checkpoint*"):
        path.unlink()


def both_damaged(folder):
    for path in folder.glob("checkpoint*"):
        truncate(path)


def bomb(folder):
    for path in folder.glob("checkpoint*"):
        torch.save({"format": files.FORMAT, "learner": Bomb()}, path)


def foreign(folder):
    torch.save({"weights": torch.zeros(3)}, folder / "checkpoint.pt")


def spoil(text, name="config.json"):
    return lambda folder: (folder / name).write_text(text)


TRAIN = [
    "--map nowhere --env sim",
    "--map 3M --env sim",
    "--mixer qmixx",
    "--env atari",
    "--steps -5",
    "--steps 0",
    "--steps many",
    "--steps 1e6",
    "--seed -1",
    "--seed 1.5",
    "--n-envs 0",
    "--n-envs 100000",
    "--device tpu",
    "--threads 0",
    "--batch-size 0",
    "--batch-size 64 --buffer-size 32",
    "--buffer-size 1000000000 --env sim --map 3m",
    "--train-interval 0",
    "--lr nan",
    "--lr inf",
    "--lr -1",
    "--optimiser sgd",
    "--gamma 1.1",
    "--td-lambda -0.1",
    "--grad-norm-clip 0",
    "--target-update-interval 0",
    "--epsilon-start 1.5",
    "--epsilon-finish nan",
    "--epsilon-anneal-steps 0",
    "--hidden-dim 0",
    "--hypernet-layers 3",
    "--test-interval 0",
    "--test-episodes 0",
    "--test-episodes 1000000",
    "--save-buffer perhaps",
    "--env-args nonsense",
    "--env-args colour=blue",
    "--env sc2 --env-args timeout=0",
    "--stepz 5",
    "--step 5",
    "3m",
    "--save-replay",
    "--run-dir file",
    "--run-dir full",
    "--runs file/runs",
    "--env sc2 --map nowhere",
    "--resume nowhere",
    "--resume full",
    "--resume file",
    "--resume run",  # finished
    "--resume run --steps 700 --gamma 0.5",
    "--resume run --steps 700 --run-dir other",
    "--resume run --evaluate run",
    "--evaluate nowhere",
    "--evaluate run --test-episodes 0",
    "--evaluate run --env sim --map 3m",
    "--evaluate run --save-replay",
    "--evaluate run --mixer vdn",
    "--evaluate run --init-from nowhere",
    "--evaluate run --paper",
    "--evaluate run --run-dir other",
    "--evaluate run --runs other",
    "--best",
    "--json",
    "--init-from nowhere",
    "--init-from=",
    "--init-from run --hidden-dim 16",
    *([] if torch.cuda.is_available() else ["--device cuda", "--evaluate run --device cuda"]),
]
SPOILED = [
    (other_shapes, "--evaluate run"),
    (other_shapes, "--resume run --steps 700"),
    (other_game, "--evaluate run"),
    (no_checkpoint, "--resume run --steps 700"),
    (no_checkpoint, "--evaluate run"),
    (both_damaged, "--resume run --steps 700"),
    (bomb, "--resume run --steps 700"),
    (bomb, "--evaluate run"),
    (foreign, "--evaluate run"),
    (spoil("{"), "--evaluate run"),
    (spoil("[]"), "--resume run --steps 700"),
    (spoil('{"flags": {}}'), "--evaluate run"),
    (lambda folder: spoil_config(folder, lr="fast"), "--resume run --steps 700"),
    (lambda folder: spoil_config(folder, flags=3), "--evaluate run"),
    (lambda folder: spoil_config(folder, surprise=3), "--evaluate run"),
]
OTHERS = [
    (plot, ""),
    (plot, "nowhere"),
    (plot, "full"),
    (plot, "run --out file/curves"),
    (plot, "run --what"),
    (plot, "run --out curves.txt"),
    (plot, "run --table nothing"),
    (plot, "file --table two-step"),
    (plot, "run --results"),
    (plot, "run --real --time"),
    (simulator, "--map nowhere"),
    (simulator, "--n-envs 0"),
    (benchmark, "--maps nowhere"),
    (benchmark, "--pymarl full"),
    (same_as_pymarl, "full"),
    (same_as_pymarl, "full --steps 0"),
    *([] if torch.cuda.is_available() else [(benchmark, "--device cuda")]),
]


def fails_with_one_line(script, argv, capsys, monkeypatch):
    def everything():
        return {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")}

    before = everything()
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *argv.split()])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if not line.startswith("Playing the simulator")]
    assert stopped.value.code == 2
    assert len(lines) == 1 and "Traceback" not in err and len(lines[0]) > 30, err
    assert everything() == before, "nothing may be written"


@pytest.fixture
def workplace(whole, tmp_path, monkeypatch):
    """A directory with run/ (a finished run), full/ (something else) and file."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("a file")
    Path("full").mkdir()
    Path("full/letter.txt").write_text("not a run")
    Path("run").mkdir()
    for path in whole.iterdir():
        Path("run", path.name).write_bytes(path.read_bytes())
    return Path("run")


@pytest.mark.parametrize("argv", TRAIN)
def test_bad_input(workplace, capsys, monkeypatch, argv):
    fails_with_one_line(train, argv, capsys, monkeypatch)


@pytest.mark.parametrize(("damage", "argv"), SPOILED)
def test_bad_run_directory(workplace, capsys, monkeypatch, damage, argv):
    damage(workplace)
    fails_with_one_line(train, argv, capsys, monkeypatch)


@pytest.mark.parametrize(("script", "argv"), OTHERS)
def test_bad_input_of_other_scripts(workplace, capsys, monkeypatch, script, argv):
    fails_with_one_line(script, argv, capsys, monkeypatch)


HEAD = "t_env,wall_time,test_win_rate,test_return\n"


@pytest.mark.parametrize(
    "text",
    ["", "t_env,wall_time\n1,2\n", HEAD, HEAD + "1,2,nan,0\n", HEAD + "2,1,0,0\n1,2,0,0\n"],
)
def test_plot_refuses_bad_metrics(workplace, capsys, monkeypatch, text):
    (workplace / "metrics.csv").write_text(text)
    fails_with_one_line(plot, "run", capsys, monkeypatch)


# --- evaluation ----------------------------------------------------------------------------------


def test_evaluation_repeats_itself_and_says_where_it_played(workplace, capsys, monkeypatch):
    outputs = []
    for _ in range(2):
        assert train.main(["--evaluate", "run", "--test-episodes", "40"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and outputs[0].endswith(" episodes=40\n")
    mean = re.search(r"test_return=(\S+)", outputs[0])[1]
    assert float(mean) == float(metrics(workplace)[-1]["test_return"])
    monkeypatch.setitem(envs.ENVS, "elsewhere", envs.TwoStepGame)
    train.main(["--evaluate", "run", "--test-episodes", "40", "--env", "elsewhere"])
    assert "Trained on two_step, played on elsewhere" in capsys.readouterr().out


def test_evaluation_in_a_game_of_pettingzoo_is_understood(whole):
    words = ["--evaluate", str(whole), "--env", "pettingzoo:module:factory"]
    args, _ = train.parse_args(words)
    assert (args.env, args.map) == ("pettingzoo", "module:factory")


def test_evaluation_as_json_tells_every_episode(workplace, capsys):
    assert train.main(["--evaluate", "run", "--test-episodes", "10", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    seed = 10_000 * 1 + train.EVALUATION_SEEDS
    assert [episode["seed"] for episode in found["episodes"]] == [seed + e % 4 for e in range(10)]
    for episode in found["episodes"]:
        assert episode["length"] == 2 and episode["won"] == (episode["return"] == 8)
    returns = [episode["return"] for episode in found["episodes"]]
    assert found["test_return"] == np.mean(returns) and found["env"] == "two_step"


@pytest.mark.parametrize("column", ["test_win_rate", "test_return"])
def test_the_best_network_is_that_of_the_best_test(tmp_path, capsys, monkeypatch, column):
    """Of all tests the third is won, or the one that pays; its network is kept, not the last."""
    weights, test, play = [], train.averages, train.play_episodes

    def playing(agent, *rest):
        assert agent is run_now[0].learner.average is not run_now[0].learner.agent
        return play(agent, *rest)

    def spying(*results):
        agent = run_now[0].learner.average.state_dict()
        weights.append({name: x.clone() for name, x in agent.items()})
        result = test(*results) | {"test_win_rate": 0.0, "test_return": 0.0}
        return result | {column: float(len(weights) == 3)}

    run_now, enter = [], run.Run.__enter__
    monkeypatch.setattr(run.Run, "__enter__", lambda self: (run_now.append(self), enter(self))[1])
    monkeypatch.setattr(train, "averages", spying)
    monkeypatch.setattr(train, "play_episodes", playing)
    assert start(tmp_path / "run") == 0
    best = files.load(tmp_path / "run" / "best.pt")
    assert equal(best, weights[2]) and not equal(best, weights[-1])
    monkeypatch.undo()
    assert train.main(["--evaluate", str(tmp_path / "run"), "--best"]) == 0
    assert "test_win_rate=" in capsys.readouterr().out


def test_a_run_from_another_runs_weights(whole, tmp_path, capsys):
    argv = ("--init-from", str(whole), "--steps", "4", "--test-interval", "1000")
    start(tmp_path / "same", *argv)
    trained, begun = learner_state(whole), learner_state(tmp_path / "same")
    for name in ("agent", "target_agent", "average"):
        assert equal(begun[name], trained["average"]) and not equal(begun[name], trained["agent"])
    for name in ("mixer", "target_mixer"):
        assert equal(begun[name], trained["mixer"])
    start(tmp_path / "vdn", *argv, "--mixer", "qmix-lin")
    assert equal(learner_state(tmp_path / "vdn")["agent"], trained["average"])
    assert "begins anew" in capsys.readouterr().out
    assert resume(tmp_path / "same", "--steps", "100") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_that_of_the_process_itself():
    """No less than what is resident now; and nothing of what its parent had."""
    block = np.ones(2**27)  # 1 GiB, more than a process has that only imports benchmark.py
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert benchmark.peak_memory() >= resident > block.nbytes
    code = [sys.executable, "-c", "from extras import benchmark; print(benchmark.peak_memory())"]
    child = subprocess.run(code, cwd=benchmark.HERE, capture_output=True, check=True)
    assert 2**26 < int(child.stdout) < block.nbytes
