"""Tests of the pictures and tables of runs, and of those in README.md and results/README.md.

QMIX (https://arxiv.org/abs/1803.11485). Run them with: python -m pytest extras/test_plot.py
"""

import importlib
import itertools
import json

import numpy as np
import pytest

from extras import files, plot, tables
from results import real_runs


def write_run(folder, wins, seconds=1.0, mixer="qmix", map_name="3m", every=1000, **changed):
    """A run directory with a test every so many steps and seconds."""
    folder.mkdir(parents=True)
    config = {"flags": {"map": map_name, "mixer": mixer, "seed": 1, "lr": 1.0} | changed}
    files.write_config(folder, config | {"env": {"name": "sim", "map": map_name}})
    rows = [
        {"t_env": every * i, "wall_time": seconds * i, "test_win_rate": w, "test_return": 20 * w}
        | {"loss": 0.1}
        for i, w in enumerate(wins)
    ]
    files.write_metrics(folder, rows)
    return str(folder)


def cells(text):
    """The rows of a markdown table below its head, as lists of cells."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def printed(capsys, *argv):
    assert plot.main([*argv]) is None
    return capsys.readouterr().out


# --- curves --------------------------------------------------------------------------------------


CURVES = ((0.0, 0.5, 1.0, 0.7, 1.0), (0.0, 0.0, 0.5, 0.5, 0.5), (0.0, 0.9, 0.9, 0.9, 0.75))


def test_plot(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [write_run(tmp_path / f"a{i}", wins, i + 1.0) for i, wins in enumerate(CURVES)]
    runs.append(write_run(tmp_path / "b", (0.0, 1.0), mixer="vdn"))
    for out, magic in (("out.png", b"\x89PNG"), ("out.svg", b"<?xml"), ("out", b"\x89PNG")):
        qmix, vdn = cells(printed(capsys, *runs, "--out", out))
        data = (tmp_path / (out if "." in out else "out.png")).read_bytes()
        assert data.startswith(magic) and len(data) > 5000
        plot.main([*runs, "--out", out])
        assert (tmp_path / (out if "." in out else "out.png")).read_bytes() == data
        capsys.readouterr()
    assert qmix[:5] == ["3m", "qmix", "3", "4,000", "0.75, 0.62 - 0.88"]
    # Three tests with 90 % on average: from 2,000 steps and 2 s, never, from 1,000 steps and 3 s.
    assert qmix[5:] == ["2k steps, 3 s", "never (1 of 3)"]
    assert vdn[2:] == ["1", "1,000", "1.00", "never (1 of 1)", "never (1 of 1)"]
    assert not (tmp_path / "curves.png").exists()
    assert "final win rate, simulator" in printed(capsys, *runs)
    assert (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("flag", ["threads", "device", "save_buffer", "run_dir", "seed", "lr"])
def test_a_curve_is_of_runs_that_differ_in_nothing_that_counts(tmp_path, flag):
    for value in (1, 2):
        write_run(tmp_path / f"{flag}{value}", (0.0, 1.0), **{flag: value})
    runs = [plot.read_run(tmp_path / f"{flag}{value}") for value in (1, 2)]
    labels = plot.group_runs(runs)[("sim", "3m")]
    assert list(labels) == (["qmix, lr 1", "qmix, lr 2"] if flag == "lr" else ["qmix"])


def test_a_curve_is_the_median_between_the_quartiles(tmp_path):
    for i, wins in enumerate(CURVES):
        write_run(tmp_path / f"a{i}", wins, i + 1.0)
    members = [plot.read_run(tmp_path / f"a{i}")[2] for i in range(3)]
    x, low, middle, high = plot.quartiles(members, "t_env")
    assert x.tolist() == [0, 1000, 2000, 3000, 4000]
    assert np.array_equal(middle, np.median(CURVES, axis=0))
    assert np.allclose((low[4], high[4]), (0.625, 0.875))
    x, _, middle, _ = plot.quartiles(members, "wall_time")  # tests at 0-4, 0-8 and 0-12 s
    assert x.tolist() == [0, 1, 2, 3, 4]
    assert middle[1] == pytest.approx(np.median([0.5, 0.0, 0.9 / 3]))


def test_plot_keeps_other_hyperparameters_apart(tmp_path):
    write_run(tmp_path / "a", (0.0, 1.0))
    write_run(tmp_path / "b", (0.0, 1.0), seed=2, a_flag_of_later=False)
    write_run(tmp_path / "c", (0.0, 1.0), lr=2.0)
    runs = [plot.read_run(tmp_path / name) for name in "abc"]
    grouped = plot.group_runs(runs)[("sim", "3m")]
    assert {label: len(members) for label, members in grouped.items()} == {
        "qmix, lr 1.0": 2,
        "qmix, lr 2.0": 1,
    }
    write_run(tmp_path / "d", (0.0, 1.0), a_number_of_later=0.0)
    runs = [plot.read_run(tmp_path / name) for name in "ad"]
    labels = [f"qmix, a_number_of_later {value}" for value in ("unset", "0.0")]
    assert list(plot.group_runs(runs)[("sim", "3m")]) == labels


# --- statistics ----------------------------------------------------------------------------------

# Final win rates, seeds x maps, and what rliable 1.2.0 makes of them (pandas 2; it does not start
# with pandas 3), 50,000 and 5,000 resamples:
#   library.get_interval_estimates({"q": Q, "v": V}, lambda x: np.array([metrics.aggregate_iqm(x)]))
#   library.get_interval_estimates({"q,v": (Q, V)},
#       lambda x, y: np.array([metrics.probability_of_improvement(x, y)]), reps=5000)
Q = ((0.97, 1.0, 0.84), (0.94, 0.97, 0.66), (1.0, 1.0, 0.94), (0.88, 0.94, 0.41), (0.97, 0.91, 1.0))
V = (
    (0.94, 0.97, 0.12),
    (0.97, 0.75, 0.03),
    (0.91, 0.97, 0.34),
    (0.66, 0.81, 0.0),
    (0.97, 0.91, 0.41),
)
RLIABLE_Q = (0.94666667, 0.89444444, 0.97666667)
RLIABLE_V = (0.74444444, 0.64666667, 0.80777778)
RLIABLE_IMPROVEMENT = (0.80666667, 0.64, 0.93333333)


def numbers(cell):
    """Of "0.95 (0.89 - 0.98)"."""
    return [
        float(word) for word in cell.replace("(", "").replace(")", "").split(" ") if word != "-"
    ]


def test_methods_are_compared_as_rliable_does(tmp_path, capsys):
    runs = []
    for (mixer, scores), m in itertools.product((("qmix", Q), ("vdn", V)), range(3)):
        for seed, row in enumerate(scores):
            folder = tmp_path / f"{mixer}_{m}_{seed}"
            runs.append(write_run(folder, (0.0, row[m]), mixer=mixer, map_name=f"map{m}"))
    # a map that only QMIX has played does not count
    runs.append(write_run(tmp_path / "more", (0.0, 0.0), map_name="alone"))
    out = printed(capsys, *runs, "--table", "methods")
    qmix, vdn = cells(out)
    assert "Over the maps map0, map1, map2." in out and not (tmp_path / "curves.png").exists()
    assert qmix[:2] == ["qmix", "15"] and vdn[:2] == ["vdn", "15"] and qmix[3] == ""
    assert numbers(qmix[2])[0] == round(RLIABLE_Q[0], 2)
    assert numbers(vdn[2])[0] == round(RLIABLE_V[0], 2)
    assert numbers(vdn[3])[0] == round(RLIABLE_IMPROVEMENT[0], 2)
    assert numbers(qmix[2]) == pytest.approx(RLIABLE_Q, abs=0.015)
    assert numbers(vdn[2]) == pytest.approx(RLIABLE_V, abs=0.015)
    assert numbers(vdn[3]) == pytest.approx(RLIABLE_IMPROVEMENT, abs=0.025)
    assert tables.iqm(np.ravel(Q)) == pytest.approx(RLIABLE_Q[0], abs=1e-8)


def test_interquartile_mean_and_improvement_against_plain_loops():
    rng = np.random.default_rng(1)
    for n in range(1, 12):
        x, y = rng.integers(0, 5, n) / 4, rng.integers(0, 5, 7) / 4
        middle = sorted(x)[n // 4 : n - n // 4]
        assert tables.iqm(x) == pytest.approx(sum(middle) / len(middle))
        pairs = [(a > b) + (a == b) / 2 for a in x for b in y]
        assert tables.improvement(x, y) == pytest.approx(sum(pairs) / len(pairs))
    both = tables.improvement(np.array([[0.0], [1.0]]), np.array([[1.0, 1.0], [0.0, 1.0]]))
    assert both.tolist() == [0.0, 0.75]


def test_maps_are_resampled_each_for_itself():
    few, many = tables.resampled([np.array([0.0, 0.5]), np.ones(3)], np.random.default_rng(0))
    assert few.shape == (tables.RESAMPLES, 2) and many.shape == (tables.RESAMPLES, 3)
    assert set(np.ravel(few)) == {0.0, 0.5} and set(np.ravel(many)) == {1.0}
    assert few.mean() == pytest.approx(0.25, abs=0.02)


def test_one_seed_has_no_interval(tmp_path, capsys):
    runs = [write_run(tmp_path / f"a{i}", (0.0, 0.8), seed=i) for i in range(2)]
    runs.append(write_run(tmp_path / "b", (0.0, 0.5), mixer="vdn"))
    qmix, vdn = cells(printed(capsys, *runs, "--table", "methods"))
    assert qmix[2] == "0.80 (0.80 - 0.80)" and vdn[2:] == ["0.50 (one seed)", "1.00 (one seed)"]


def test_no_map_in_common(tmp_path, capsys):
    runs = [write_run(tmp_path / "a", (0.0, 1.0))]
    runs.append(write_run(tmp_path / "b", (0.0, 1.0), mixer="vdn", map_name="8m"))
    with pytest.raises(SystemExit):
        plot.main([*runs, "--table", "methods"])
    assert "no map was played by all of qmix, vdn" in capsys.readouterr().err


def test_without_qmix_there_is_nothing_to_be_better_than(tmp_path, capsys):
    runs = [write_run(tmp_path / mixer, (0.0, 1.0), mixer=mixer) for mixer in ("vdn", "iql")]
    assert [len(row) for row in cells(printed(capsys, *runs, "--table", "methods"))] == [3, 3]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--results --out x.png", "leave out other flags"),
        ("x --table win-rates --time", "give --out, too"),
        ("x --out new/x.bmp", "--out new/x.bmp must end in .png, .svg or .pdf"),
    ],
)
def test_flags_that_would_do_nothing(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        plot.main(words.split())
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("wins", "slower"), [((0.0, 17.0), 1.0), ((0.0, 1.0), -1.0)])
def test_numbers_that_cannot_be(tmp_path, capsys, wins, slower):
    with pytest.raises(SystemExit):
        plot.main([write_run(tmp_path / "run", wins, slower)])
    assert "win rates must be from 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wins", "first"),
    [
        ([1.0, 1.0], None),
        ([0.0, 1.0, 0.7, 1.0], 1),
        ([0.9, 0.9, 0.9], 0),
        ([1.0, 0.6, 1.0, 0.6], None),
        ([0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0], 2),
        ([0.90625, 0.90625, 0.875, 0.90625, 0.90625], None),
        ([0.90625, 0.90625, 0.8875], 0),
    ],
)
def test_first_of_three_tests(wins, first):
    assert tables.first_of_three(np.array(wins)) == first


def test_of_two_runs_in_the_middle_the_later_counts():
    runs = [
        {"t_env": 1000 * np.arange(5), "wall_time": np.arange(5) * 2, "test_win_rate": wins}
        for wins in np.array([[0, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    ]
    assert tables.until_won(runs) == ["2k steps, 4 s"] * 2


# --- tables --------------------------------------------------------------------------------------


def test_beside_the_real_game_by_steps(tmp_path, capsys):
    wins = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    runs = [write_run(tmp_path / "a", wins, every=100_900, map_name="3s5z")]  # up to 504,500
    runs.append(write_run(tmp_path / "b", [0.0, 0.5, 0.6], every=100_000, map_name="3s5z"))
    runs.append(write_run(tmp_path / "c", [0.0, 0.7], every=103_000, map_name="3s5z"))
    out = printed(capsys, *runs, "--table", "by-steps")
    here, real = cells(out)
    assert "| 100,000 | 200,000 | 300,000 | 500,000" in " ".join(out.split())
    # at 100,000 the median of two of the three runs: c's test is 3 % late
    expected = ["3s5z", "qmix", "simulator, 3", "0.30 (2)", "0.40 (2)", "0.30 (1)", "0.50 (1)"]
    assert here == expected
    assert real[2:] == ["StarCraft II, 4", "0.40", "0.29", "0.49", "0.69"]

    run = tmp_path / "b"
    config = files.read_config(run)
    config["env"]["name"] = "sc2"
    files.write_config(run, config)
    out = printed(capsys, str(run), "--table", "by-steps")
    assert "| 200,000 |" in out and "300,000" not in out, "no further than the run itself"


def test_real_runs_are_found_in_training_logs(tmp_path, capsys):
    """An odd setting, a short run, a copy and a log cut short are left out."""
    folder = tmp_path / "tlxxx/LINDA/results/sacred"

    def write_log(name, wins, every=10_000, **other):
        steps = [every * (i + 1) for i in range(len(wins))]
        config = real_runs.PYMARL | {"mixer": "qmix", "env_args": {"map_name": "3m"}} | other
        log = json.dumps({"test_battle_won_mean_T": steps, "test_battle_won_mean": wins})
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        (folder / name / "info.json").write_text(log)

    wins = [i / 200 for i in range(101)]  # the last test after 1,010,000 steps
    others = [win / 2 for win in wins]
    write_log("1", wins)
    write_log("2", [*wins, 0.75])  # goes on where 1 ends
    write_log("3", others[:50])
    write_log("4", others, lr=0.001)
    write_log("5", wins, mixer=None, env_args={"map_name": "8m"})
    write_log("6", others, prioritised_replay=True)
    write_log("results_modify/6", others)
    write_log("7", others)
    (folder / "7" / "info.json").write_text('{"test_battle_won_mean_T": [1')
    real_runs.main([str(tmp_path)])
    first, second = json.loads(capsys.readouterr().out)["rows"]
    assert [run["name"] for run in first["runs"]] == ["tlxxx/LINDA/results/sacred/2"]
    # of the tests after 80,000 to 120,000 steps; the last three of those after 980,000 to 1,020,000
    found = first["runs"][0]["win_rate"]
    assert found["100000"] == round((7 + 8 + 9 + 10 + 11) / 5 / 200, 3)
    assert found["1000000"] == round((97 + 98 + 99 + 100 + 150) / 5 / 200, 3)
    assert "1500000" not in found
    assert (second["map"], second["method"]) == ("8m", "iql")


def test_beside_what_others_measured(tmp_path, capsys):
    runs = [
        write_run(tmp_path / f"{mixer}_{map_name}", [0.0, 0.6, 0.75], 1.0, mixer, map_name, 400_000)
        for mixer, map_name in (("qmix", "3s5z"), ("vdn", "3s5z"), ("qmix", "25m"))
    ]
    assert "Tuned" not in printed(capsys, *runs, "--table", "all-maps")
    runs.append(write_run(tmp_path / "lr", [0.0] * 3, 1.0, "vdn", "3s5z", 400_000, lr=2.0))
    runs.append(write_run(tmp_path / "vdn", [0.0] * 3, 1.0, "vdn", "MMM2", 400_000))
    out = printed(capsys, *runs, "--table", "all-maps")
    qmix, vdn, slow, other, hard = cells(out)
    assert slow[1] == "vdn, lr 2.0" and slow[5:] == vdn[5:], "published of whatever settings"
    assert qmix[2:] == ["1", "800,000", "0.75", "0.78, 0.68 - 0.82 (4) at 750,000", "0.97", ""]
    assert vdn[5:] == ["", "0.84", ""] and hard[5:] == ["", "0.01", "0.96"]
    assert other[5:] == ["", "", ""]
    assert "pymarl2 at 06cdce9" in out
    assert "1902.04043" in out and "Jonarain/pymarl, Togmm/pymarl-monotone-qmix." in out
    assert "final win rate, simulator" in out and "4.6.2, SMAC paper" in out


def test_evaluations_side_by_side(tmp_path, capsys):
    path = tmp_path / "evaluations.txt"
    lines = ["maps/2c_vs_64zg_vdn_s11 test_win_rate=0.500 test_return=20.0 episodes=256"]
    lines += [f"3m_qmix-ns_s{seed} test_win_rate=0.{seed}00" for seed in (1, 2)]
    lines += ["2c_vs_64zg_qmix_s11 test_win_rate=1.000 test_return=20.0"]
    path.write_text("\n".join(lines))
    out = printed(capsys, str(path), "--table", "evaluated")
    assert cells(out) == [["2c_vs_64zg", "1.000", "0.500", ""], ["3m", "", "", "0.100, 0.200"]]
    assert out.startswith("| map        | qmix  | vdn   | qmix-ns ")
    path.write_text("3m_s11 test_win_rate=0.500")
    with pytest.raises(SystemExit):
        plot.main([str(path), "--table", "evaluated"])
    assert f"{path}: not MAP_METHOD_sSEED and what" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        plot.main([str(path), "--table", "two-step"])
    assert f"{path} is not what two_step_game.py --json prints" in capsys.readouterr().err


def test_two_step_table(tmp_path, capsys):
    states = {state: [[1.0, 2.0], [3.0, 4.0]] for state in tables.STATES}
    results = [{"mixer": "vdn", "seed": 0, "greedy_return": 7.0} | states]
    results.append(results[0] | {"seed": 1, "greedy_return": 8.0, "state_2A": [[2, 2], [3, 0]]})
    path = tmp_path / "two_step.jsonl"
    path.write_text("".join(json.dumps(result) + "\n" for result in results))
    first, second, _ = cells(printed(capsys, str(path), "--table", "two-step"))
    assert first[:3] == ["vdn", "state 1", "1.00 ± 0.00"]
    assert first[6:] == ["6.94, 6.94, 6.35, 6.36", "8: 1 of 2 seeds, 7: 1 of 2 seeds", "7"]
    assert second[1:6] == ["state 2A", "1.50 ± 0.50", "2.00 ± 0.00", "3.00 ± 0.00", "2.00 ± 2.00"]


def test_the_same_run_twice_is_told(tmp_path, capsys):
    runs = [write_run(tmp_path / name, (0.0, 0.5)) for name in "ab"]
    runs.append(write_run(tmp_path / "c", (0.0, 0.5), seed=2))
    plot.main([*runs, "--table", "returns"])
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"{runs[0]} and {runs[1]} have the same flags and seed" in err


def test_a_run_that_is_cut_short_is_told(tmp_path, capsys):
    whole, stopped, cut = (
        write_run(tmp_path / name, (0.0, 0.5, 0.75), seed=i, steps=2000)
        for i, name in enumerate(("whole", "stopped", "cut"))
    )
    for run, end in ((stopped, -2), (cut, -1)):  # without its last row; in the middle of it
        path = tmp_path / run / "metrics.csv"
        lines = path.read_text().splitlines()
        text = "\n".join(lines[: len(lines) + end + 1])
        path.write_text(text + "\n" if run == stopped else text.rpartition(",")[0])
    rows = cells(printed(capsys, whole, stopped, cut, "--table", "returns"))
    assert rows[0][-2:] == ["0.0 to 15.0", "0.0 to 10.0"], "cut is left out"
    plot.main([whole, stopped, cut, "--table", "returns"])
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2
    assert "left out" in err[0] and f"{cut}/metrics.csv" in err[0]
    assert err[1].endswith(f"taken as they are: {stopped}")


def test_returns(tmp_path, capsys):
    runs = [write_run(tmp_path / "a", (0.0, 0.5, 1.0)), write_run(tmp_path / "b", (0.5, 0.25))]
    (row,) = cells(printed(capsys, *runs, "--table", "returns"))
    assert row == ["3m", "qmix", "1,000 to 2,000", "0.0 to 20.0", "10.0 to 5.0"]


# --- the pages -----------------------------------------------------------------------------------


def test_a_page_is_renewed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plot, "ROOT", tmp_path)
    monkeypatch.setattr(plot, "PAGES", ("page.md",))
    for seed in (1, 2):
        write_run(tmp_path / f"runs/3m_s{seed}", (0.0, 0.5 * seed))
    page = tmp_path / "page.md"
    command = "<!-- python -m extras.plot runs/3m_s* --out runs/curves.png -->"
    page.write_text(f"Before\n\n{command}\n<!-- end -->\n\nAfter\n")
    plot.main(["--results"])
    text = page.read_text()
    assert text.startswith(f"Before\n\n{command}\n\n| map ") and text.endswith("-->\n\nAfter\n")
    assert cells(text)[0][:5] == ["3m", "qmix", "2", "1,000", "0.75, 0.62 - 0.88"]
    picture = (tmp_path / "runs/curves.png").read_bytes()
    (tmp_path / "runs/curves.png").unlink()
    assert plot.renewed("page.md", pictures=False) == text
    assert not (tmp_path / "runs/curves.png").exists()

    page.write_text(text.replace("0.75", "0.95"))
    assert plot.renewed("page.md", pictures=False) == text != page.read_text()
    plot.main(["--results"])
    assert page.read_text() == text and (tmp_path / "runs/curves.png").read_bytes() == picture
    write_run(tmp_path / "runs/3m_s3", (0.0, 1.0))
    assert cells(plot.renewed("page.md"))[0][2] == "3"

    capsys.readouterr()
    for wrong in (
        text.replace("<!-- end -->", ""),
        text.replace("<!-- end -->", "") + text,
        text.replace("runs/3m", "runs/8m"),
    ):
        page.write_text(wrong)
        with pytest.raises(SystemExit):
            plot.main(["--results"])
        assert page.read_text() == wrong and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("page", plot.PAGES)
def test_the_tables_are_those_of_the_raw_files(page):
    """python -m extras.plot --results brings them up to date."""
    text = (plot.ROOT / page).read_text()
    assert plot.renewed(page, pictures=False) == text
    commands = plot.COMMAND.findall(text)
    assert commands
    for command in commands:
        out = plot.parse(command.split()).out
        assert out is None or (plot.ROOT / out).is_file()


@pytest.mark.parametrize("name", ("table", "batched"))
def test_the_tables_of_the_search_are_those_of_its_raw_files(name, capsys):
    """They are printed by commands of their own, and pasted."""
    importlib.import_module(f"results.choice.{name}").main()
    page = (plot.ROOT / "results/choice/README.md").read_text()
    for table in capsys.readouterr().out.strip().split("\n\n"):
        assert f"\n\n{table}\n\n" in page


def test_the_win_rates_over_256_episodes_are_those_of_the_raw_file():
    page = (plot.ROOT / "results/README.md").read_text()
    lines = (plot.ROOT / "results/evaluations.txt").read_text().splitlines()
    rates = {run: win.removeprefix("test_win_rate=") for run, win, *_ in map(str.split, lines)}
    for game_map in ("3m", "2s3z", "3s5z"):
        runs = sorted(path.name for path in (plot.ROOT / "results").glob(f"{game_map}_s*"))
        seeds = f"seeds {runs[0].split('_s')[1]} to {runs[-1].split('_s')[1]}"
        assert f"- {game_map}, {seeds}: {', '.join(rates.pop(run) for run in runs)}.\n" in page
    slower = rates.pop("hard/MMM2_qmix_s11")
    assert f"in hard/MMM2_qmix_s11) seed 11 of MMM2 wins {slower} instead of" in page
    assert not rates, "of runs that are not here"
    lines = (plot.ROOT / "results/maps.txt").read_text().splitlines()
    runs = {path.name for path in (plot.ROOT / "results/maps").iterdir()}
    assert sorted(line.split()[0] for line in lines) == sorted(runs)
