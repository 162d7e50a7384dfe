"""Tests of runs: the loop, test episodes, what is logged, evaluation, plots and bad input.

QMIX (https://arxiv.org/abs/1803.11485). Run them with: python -m pytest test_train.py

Most runs here play the two-step game with networks of a few units and take a fraction of a second.
"""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import benchmark
import flags
import numpy as np
import plot
import pytest
import run
import simulator
import torch

import envs
import train
import two_step_game

TINY = shlex.split("""
    --env two_step --steps 600 --n-envs 4 --test-interval 100 --test-episodes 6 --train-interval 4
    --buffer-size 40 --batch-size 8 --epsilon-anneal-steps 300 --target-update-interval 20
    --hidden-dim 8 --mixing-embed-dim 4 --hypernet-embed 8 --threads 1
""")
TIMING = ("wall_time", "env_steps_per_s")


def start(folder, *more):
    return train.main([*TINY, *more, "--run-dir", str(folder)])


def resume(folder, *more):
    return train.main(["--resume", str(folder), *more])


def metrics(folder):
    """Rows of metrics.csv without the timing columns; checks that it is well formed."""
    text = (folder / "metrics.csv").read_text()
    assert text.endswith("\n")
    rows = list(csv.DictReader(text.splitlines()))
    assert all(list(row) == run.COLUMNS and None not in row.values() for row in rows)
    t_env = [int(row["t_env"]) for row in rows]
    assert t_env == sorted(set(t_env)), "t_env must be strictly increasing"
    return [{k: v for k, v in row.items() if k not in TIMING} for row in rows]


def learner_state(folder):
    return run.load(folder / "checkpoint.pt")["learner"]


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def same_run(a, b):
    return metrics(a) == metrics(b) and equal(learner_state(a), learner_state(b))


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(run.os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert start(folder) == 0
    return folder


# --- the loop ------------------------------------------------------------------------------------


def test_linear_its_boundaries():
    epsilon = [train.linear(t, 1.0, 0.05, 50_000) for t in (0, 25_000, 49_999, 50_000, 10**9)]
    assert epsilon == pytest.approx([1.0, 0.525, 0.050019, 0.05, 0.05], abs=1e-9)
    assert epsilon[2] > epsilon[3] == epsilon[4] == 0.05
    assert train.linear(0, 0.3, 0.3, 1) == 0.3


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
    assert config["flags"]["lr"] == 1e-3 and config["flags"]["n_envs"] == 4
    assert config["versions"]["torch"] == torch.__version__
    kept = vars(flags.parse_args(TINY)[0]).keys() - set(flags.NOT_KEPT)
    assert config["flags"].keys() == kept, "every flag is in config.json"


def test_tensorboard_has_the_same_scalars(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole)).Reload()
    for name in ("test_return", "loss", "epsilon"):
        seen = {event.step: event.value for event in events.Scalars(name)}
        rows = {int(row["t_env"]): float(row[name]) for row in metrics(whole) if row[name]}
        assert seen == pytest.approx(rows, rel=1e-5)


@pytest.mark.parametrize("n_envs", [1, 3, 8])
def test_gradient_steps_depend_on_episodes_only(tmp_path, n_envs):
    """One update at each third episode, from the one that fills the first batch of 8 on."""
    start(tmp_path / "run", "--n-envs", str(n_envs), "--train-interval", "3", "--steps", "240")
    row = metrics(tmp_path / "run")[-1]
    episodes = int(row["episodes"])
    assert episodes == 120
    due = range(3, episodes + 1, 3)  # n_envs end at once, so up to n_envs - 1 more are stored
    assert int(row["updates"]) == sum(-(-count // n_envs) * n_envs >= 8 for count in due)


def test_learning_changes_the_agent_and_syncing_the_target(tmp_path):
    start(tmp_path / "never", "--target-update-interval", "1000000")
    start(tmp_path / "always", "--target-update-interval", "1")
    args, *_ = flags.parse_args(TINY)
    initial = train.build(args).learner.state_dict()
    never, always = learner_state(tmp_path / "never"), learner_state(tmp_path / "always")
    for name in ("agent", "mixer"):
        for weight in initial[name]:
            assert not torch.equal(initial[name][weight], never[name][weight]), weight
        assert equal(initial[f"target_{name}"], never[f"target_{name}"])
        assert equal(always[name], always[f"target_{name}"])
        assert not equal(never[name], always[name]), "targets matter"


@pytest.mark.parametrize("mixer", [*flags.MIXERS, "iql"])
def test_every_mixer_trains_and_evaluates(tmp_path, mixer, capsys):
    start(tmp_path / "run", "--mixer", mixer, "--steps", "100", "--paper", "--n-envs", "4")
    assert int(metrics(tmp_path / "run")[-1]["updates"]) > 5
    assert train.main(["--evaluate", str(tmp_path / "run"), "--test-episodes", "3"]) == 0
    assert re.search(r"^test_win_rate=\d\.\d{3} test_return=\d+\.\d episodes=3\n\Z",
                     capsys.readouterr().out, re.M)  # fmt: skip


def test_same_seed_same_run(whole, tmp_path):
    start(tmp_path / "same")
    start(tmp_path / "other", "--seed", "2")
    assert same_run(whole, tmp_path / "same")
    assert metrics(whole) != metrics(tmp_path / "other")


@pytest.mark.parametrize("faster", ["cpu", "cuda"])
def test_device_auto_measures(tmp_path, monkeypatch, faster):
    """The GPU is the CPU in disguise, and the other one takes a fifth of a second longer."""
    make, to = train.make_learner, train.Batch.to

    def make_learner(args, env, device):
        learner = make(args, env, "cpu")
        update = learner.update
        learner.update = lambda batch: (time.sleep(0.2 * (device != faster)), update(batch))[1]
        return learner

    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(train, "make_learner", make_learner)
        patch.setattr(train.Batch, "to", lambda batch, _: to(batch, "cpu"))
        args, *_ = flags.parse_args(TINY)
        assert train.faster_device(args, train.make_env("two_step")) == faster
        if faster == "cpu":
            start(tmp_path / "auto")
            assert (
                json.loads((tmp_path / "auto" / "config.json").read_text())["flags"]["device"]
                == "cpu"
            )
    if faster == "cpu":  # the measurement leaves no trace
        start(tmp_path / "cpu", "--device", "cpu")
        assert same_run(tmp_path / "auto", tmp_path / "cpu")


class Corridor:
    """Environment e wins after lengths[e] steps if that is odd, loses if even; it aborts each third
    episode of environment 0 at its first step, with senseless observations and reward."""

    name, version = "corridor", "1"
    n_agents, n_actions, obs_dim, state_dim, episode_limit = 2, 2, 1, 1, 9

    def __init__(self, lengths, aborts):
        self.n_envs, self.lengths, self.aborts = len(lengths), np.array(lengths), aborts
        self.t, self.begun = np.zeros(self.n_envs, int), np.zeros(self.n_envs, int)
        self.avail_actions = np.ones((self.n_envs, 2, 2), bool)
        self.reset()

    def reset(self, mask=None):
        mask = np.ones(self.n_envs, bool) if mask is None else mask
        self.t[mask] = 0
        self.begun[mask] += 1
        self.obs = np.tile(self.t[:, None, None], (1, 2, 1)).astype(np.float32)
        self.state = self.t[:, None].astype(np.float32)

    def step(self, actions):
        assert (self.t < self.lengths).all(), "stepped without a reset"
        self.t += 1
        aborted = (np.arange(self.n_envs) == 0) & (self.begun % 3 == 0) & self.aborts
        terminated = (self.t == self.lengths) & ~aborted
        self.obs[:], self.state[:] = self.t[:, None, None], self.t[:, None]
        self.obs[aborted] = self.state[aborted] = np.nan
        reward = np.where(aborted, np.nan, 1.0).astype(np.float32)
        no = np.zeros(self.n_envs, bool)
        return envs.Step(reward, terminated, no, terminated & (self.lengths % 2 == 1), aborted)

    def close(self):
        pass


@pytest.mark.parametrize("aborts", [False, True])
def test_short_episodes_count_no_more_than_long_ones(aborts):
    env = Corridor([1, 8], aborts)
    agent = train.RNNAgent(5, 2, 4)
    result = train.play_episodes(agent, env, 5)  # three of the first, two of the second
    assert result["test_win_rate"] == pytest.approx(3 / 5)
    assert result["test_return"] == result["test_episode_length"] == pytest.approx(19 / 5)
    assert result["aborted_episodes"] > 0 if aborts else result["aborted_episodes"] == 0


def test_aborted_episodes_are_counted_and_never_learned_from(tmp_path, monkeypatch):
    sampled, original = [], train.ReplayBuffer.sample

    def spying(self, *args):
        sampled.append(original(self, *args))
        return sampled[-1]

    monkeypatch.setattr(train.ReplayBuffer, "sample", spying)
    monkeypatch.setattr(train, "make_env", lambda *_, **__: Corridor([3, 4], True))
    assert start(tmp_path / "run", "--buffer-size", "9") == 0
    last = metrics(tmp_path / "run")[-1]
    assert int(last["aborted_episodes"]) > 20
    # Environment 0: two episodes of three steps, then an abort; environment 1: four steps each.
    steps = int(last["t_env"])
    assert int(last["episodes"]) == pytest.approx(steps * (2 / 13 + 7 / (4 * 13)), rel=0.05)
    assert sampled
    for batch in sampled:
        assert all(torch.isfinite(x).all() for x in (batch.obs, batch.state, batch.reward))
        assert set(batch.filled.sum(0).tolist()) <= {3, 4}


def test_every_episode_begins_without_a_memory():
    """Acting in two environments out of step equals unrolling each of their episodes by itself."""
    torch.manual_seed(0)
    env, agent = Corridor([3, 5], False), train.RNNAgent(5, 2, 4)
    players = train.Players(agent, env)
    hidden, last_actions = agent.initial_hidden(4).view(2, 2, 4), torch.full((2, 2), -1)
    for _ in range(20):
        inputs = train.build_inputs(torch.from_numpy(env.obs), last_actions, 2)
        with torch.no_grad():
            for e in range(2):
                _, hidden[e] = agent(inputs[e : e + 1], hidden[e])
        actions = players.act(epsilon=0.5)
        assert torch.allclose(players.hidden.view(2, 2, 4), hidden, atol=1e-6)
        last_actions = torch.from_numpy(actions.copy())
        over = players.after(env.step(actions))[1]
        players.begin(over)
        hidden[over], last_actions[over] = 0, -1


def test_a_log_file_gets_plain_lines(whole, tmp_path, capsys):
    start(tmp_path / "run")
    out, err = capsys.readouterr()
    assert "\r" not in out + err and "%|" not in err
    assert len([line for line in out.splitlines() if line.startswith("t_env")]) == 7
    assert "Done: 600 steps" in out and str(tmp_path / "run") in out


def test_rows_average_over_what_came_since_the_last_one():
    progress = run.Progress()
    for returns, losses in ((6.0, [1.0, 2.0]), (8.0, []), (9.0, [5.0])):
        progress.add(episodes=2, train_return=returns, train_win_rate=1)
        for loss in losses:
            progress.add(updates=1, loss=loss, grad_norm=0.0, q_tot=0.0, target=0.0)
        progress.add_row({})
    assert [row["train_return"] for row in progress.rows] == [3.0, 4.0, 4.5]
    assert [row["loss"] for row in progress.rows] == [1.5, None, 5.0]


def test_report_warns_when_the_win_rate_collapses():
    def warned(wins):
        row = {"t_env": 1, "wall_time": 1.0, "test_return": 1.0, "env_steps_per_s": 1.0}
        return "Warning" in run.report([row | {"test_win_rate": win} for win in wins], 9)

    assert warned([0.2, 0.9, 0.4]) and warned([0.5, 0.2])
    assert not warned([0.9, 0.5]) and not warned([0.4, 0.0]) and not warned([0.9, 0.4, 0.3])


def test_paper_values_give_way_to_explicit_flags():
    args, *_ = flags.parse_args(["--paper"])
    assert (args.optimiser, args.lr, args.td_lambda, args.train_interval) == ("rmsprop", 5e-4, 0, 1)
    args, *_ = flags.parse_args(["--paper", "--lr", "0.01"])
    assert (args.optimiser, args.lr) == ("rmsprop", 0.01)


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
        torch.save({"format": run.FORMAT, "learner": Bomb()}, path)


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
    "--sc2-timeout 0",
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
    (plot, "nowhere --battle"),
    (simulator, "--map nowhere"),
    (simulator, "--n-envs 0"),
    (benchmark, "--maps nowhere"),
    (benchmark, "--pymarl full"),
    *([] if torch.cuda.is_available() else [(benchmark, "--device cuda")]),
    (two_step_game, "--mixer iql"),
    (two_step_game, "--mixer nobody"),
    (two_step_game, "--seed -1"),
    (two_step_game, "--json"),
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


HEAD = "t_env,wall_time,test_win_rate\n"


@pytest.mark.parametrize(
    "text", ["", "t_env,wall_time\n1,2\n", HEAD, HEAD + "1,2,nan\n", HEAD + "2,1,0\n1,2,0\n"]
)
def test_plot_refuses_bad_metrics(workplace, capsys, monkeypatch, text):
    (workplace / "metrics.csv").write_text(text)
    fails_with_one_line(plot, "run", capsys, monkeypatch)


# --- evaluation and plots ------------------------------------------------------------------------


def test_evaluation_repeats_itself_and_says_where_it_played(workplace, capsys, monkeypatch):
    outputs = []
    for _ in range(2):
        assert train.main(["--evaluate", "run", "--test-episodes", "40"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and outputs[0].endswith(" episodes=40\n")
    mean = re.search(r"test_return=(\S+)", outputs[0])[1]
    assert float(mean) == float(metrics(workplace)[-1]["test_return"])
    game = envs.TwoStepGame(4)
    game.name = "elsewhere"
    monkeypatch.setattr(train, "make_env", lambda *_, **__: game)
    train.main(["--evaluate", "run", "--test-episodes", "40"])
    assert "Trained on two_step, played on elsewhere" in capsys.readouterr().out


def write_run(folder, wins, seconds, mixer="qmix", **changed):
    folder.mkdir()
    config = {"flags": {"map": "3m", "mixer": mixer, "seed": 1, "lr": 1.0} | changed}
    run.write_config(folder, config | {"env": {"name": "sim", "map": "3m"}})
    rows = [
        dict.fromkeys(run.COLUMNS)
        | {"t_env": 1000 * i, "wall_time": seconds * i, "test_win_rate": w}
        for i, w in enumerate(wins)
    ]
    run.write_metrics(folder, rows)


def test_plot(tmp_path, capsys):
    curves = [(0.0, 0.5, 0.75, 1.0), (0.0, 0.0, 0.5, 0.5), (0.0, 0.25, 0.25, 0.9)]
    for i, wins in enumerate(curves):
        write_run(tmp_path / f"a{i}", wins, seconds=float(i + 1), seed=i)
    write_run(tmp_path / "b", (0.0, 1.0), seconds=1.0, mixer="vdn")
    folders = [tmp_path / name for name in ("a0", "a1", "a2", "b")]
    assert plot.main([*map(str, folders), "--out", str(tmp_path / "out")]) is None
    for suffix, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        data = (tmp_path / f"out{suffix}").read_bytes()
        assert data.startswith(magic) and len(data) > 5000
    qmix, vdn = (line.split() for line in capsys.readouterr().out.splitlines()[1:3])
    # Final 0.5 0.9 1.0; 50 % after 1, 4, 9 s; 90 % after 3 s, never, 9 s.
    assert qmix[:6] == ["sim", "3m", "qmix", "3", "3000", "0.900"]
    assert qmix[6:] == ["0.700", "-", "0.950", "2k,", "4", "s", "3k,", "9", "s"]
    assert vdn[3:] == [
        "1",
        "1000",
        "1.000",
        "1.000",
        "-",
        "1.000",
        "1k,",
        "1",
        "s",
        "1k,",
        "1",
        "s",
    ]

    members = [plot.read_run(folder)[2] for folder in folders[:3]]
    x, low, middle, high = plot.quartiles(members, "t_env")
    assert x.tolist() == [0, 1000, 2000, 3000]
    assert np.array_equal(middle, np.median(curves, axis=0))
    assert np.allclose((low[3], high[3]), (0.7, 0.95))
    x, _, middle, _ = plot.quartiles(members, "wall_time")  # tests at 0-3, 0-6 and 0-9 s
    assert x.tolist() == [0, 1, 2, 3]
    assert middle[2] == pytest.approx(np.median([0.75, 0.0, 0.25 * 2 / 3]))


def test_half_the_runs_must_get_there():
    there, never = ({"t_env": [0, 1], "test_win_rate": np.array([0, win])} for win in (1.0, 0.4))
    assert plot.reached([there, never], "t_env", 0.5) == np.inf
    assert plot.reached([there, there, never], "t_env", 0.5) == 1


def test_plot_keeps_other_hyperparameters_apart(tmp_path):
    write_run(tmp_path / "a", (0.0, 1.0), 1.0)
    write_run(tmp_path / "b", (0.0, 1.0), 1.0, seed=2)
    write_run(tmp_path / "c", (0.0, 1.0), 1.0, lr=2.0)
    runs = [plot.read_run(tmp_path / name) for name in "abc"]
    grouped = plot.group_runs(runs)[("sim", "3m")]
    assert {label: len(members) for label, members in grouped.items()} == {
        "qmix, lr 1.0": 2,
        "qmix, lr 2.0": 1,
    }


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_that_of_the_process_itself():
    """No less than what is resident now; and nothing of what its parent had."""
    block = np.ones(2**27)  # 1 GiB, more than a process has that only imports benchmark.py
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert benchmark.peak_memory() >= resident > block.nbytes
    code = [sys.executable, "-c", "import benchmark; print(benchmark.peak_memory())"]
    child = subprocess.run(code, cwd=benchmark.HERE, capture_output=True, check=True)
    assert 2**26 < int(child.stdout) < block.nbytes
