"""Tests of the lesson, extras/qmix_lesson.ipynb: run from top to bottom with a short training.

    pip install -r requirements.txt -r extras/requirements-lesson.txt
    python -m pytest extras/test_lesson.py

Those that run the notebook are marked slow (about a minute).
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

WHY = "the lesson's notebook tools are missing: pip install -r extras/requirements-lesson.txt"
nbformat = pytest.importorskip("nbformat", reason=WHY)
nbclient = pytest.importorskip("nbclient", reason=WHY)
pytest.importorskip("ipykernel", reason=WHY)

LESSON = Path(__file__).with_name("qmix_lesson.ipynb")
STEPS = 5000  # of training on 3m: it wins nothing yet, but everything is drawn
FOUND = """
import json
print(json.dumps({
    "tables": tables, "returns": returns, "least_wrong": least_wrong.tolist(), "slopes": slopes,
    "agreed": agreed, "t_env": columns["t_env"].tolist(), "living": living, "dead": dead,
    "mixed_up": mixed_up, "mixed_return": mixed_return, "signed_slope": signed_slope,
    "signed_agreed": signed_agreed}))
"""


def read():
    return nbformat.read(LESSON, as_version=4)


def cell(notebook, name):
    return next(cell for cell in notebook.cells if cell.id == name)


@pytest.fixture(scope="module")
def played():
    """The notebook after a run in which a reader has pasted the solutions into the empty cells, and
    what its variables were in the end."""
    notebook = read()
    cell(notebook, "parameters").source = f"STEPS = {STEPS}"
    for name in ("exercise-1", "exercise-2"):
        hidden = re.search(r"<details>.*</details>", cell(notebook, name).source, re.S)[0]
        (solution,) = re.findall(r"```python\n(.*?)```", hidden, re.S)
        cell(notebook, f"{name}-yours").source = solution
    notebook.cells.append(nbformat.v4.new_code_cell(FOUND))
    where = {"metadata": {"path": str(LESSON.parent)}}  # as Jupyter starts it
    nbclient.NotebookClient(notebook, timeout=300, resources=where).execute()
    (printed,) = notebook.cells[-1].outputs
    return notebook, json.loads(printed.text)


def test_the_file_is_clean():
    notebook = read()
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.metadata.kernelspec.name) == (4, "python3")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    (home,) = re.findall(r'REPOSITORY = "https://github.com/(.+?)"', cell(notebook, "setup").source)
    path = f"https://colab.research.google.com/github/{home}/blob/main/extras/{LESSON.name}"
    assert f"({path})" in cell(notebook, "title").source, "the badge opens another repository"


@pytest.mark.slow
def test_two_step_game_in_the_lesson(played):
    found = played[1]
    assert found["returns"] == {"vdn": 7, "qmix-lin": 7, "qmix": 8}
    np.testing.assert_allclose(found["least_wrong"], [[-1.5, 2.5], [2.5, 6.5]], atol=1e-9)
    truth, vdn, qmix = (np.array(found["tables"][name]) for name in ("the truth", "vdn", "qmix"))
    paper = [[[6.93] * 2, [7.92] * 2], [[7, 7], [7, 7]], [[0, 1], [1, 8]]]
    np.testing.assert_allclose(truth, paper, atol=0.006)
    np.testing.assert_allclose(qmix, truth, atol=0.1)
    np.testing.assert_allclose(vdn[2], found["least_wrong"], atol=0.3)
    assert vdn[0].max() == pytest.approx(0.99 * 7, abs=0.3)


@pytest.mark.slow
def test_the_rule_in_the_lesson(played):
    found = played[1]
    assert found["slopes"].pop("vdn") == 1 and all(x >= 0 for x in found["slopes"].values())
    assert list(found["agreed"].values()) == [1, 1, 1]
    assert min(found["living"] + found["dead"]) >= 0 and len(set(found["living"])) > 100


@pytest.mark.slow
def test_solutions_of_the_exercises(played):
    found = played[1]
    # three standard errors of the mean of 250 games that pay 0 or 8, as many as replay keeps
    np.testing.assert_allclose(found["mixed_up"], 4, atol=3 * 4 / 250**0.5)
    assert found["mixed_return"] == 7
    assert found["signed_slope"] < 0 and found["signed_agreed"] < 0.5


@pytest.mark.slow
def test_curve_and_battle_are_shown(played, tmp_path):
    notebook, found = played
    tests = np.array(found["t_env"])
    assert tests[0] == 0 and STEPS <= tests[-1] < STEPS + 100 and len(tests) >= 2
    for name in ("tables", "draw-slopes", "train-3m"):
        assert any("image/png" in out.get("data", {}) for out in cell(notebook, name).outputs), name
    (shown,) = [out.data["text/html"] for out in cell(notebook, "watch").outputs if "data" in out]
    assert len(shown) < 2e6 and not re.search(r"(src|href)=\"?http", shown)

    from extras.test_watch import CHROMIUM, WAIT, browser

    if CHROMIUM is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    page = tmp_path / "cell.html"
    page.write_text(f'<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">{shown}')
    with browser(page) as tab:
        tab.run(WAIT)
        time = tab.run("frames[0].eval('view.time')")
        tab.run(WAIT)
        assert tab.run("frames[0].eval('view.time')") > time, "the battle does not play"
        assert tab.run("frames[0].eval('data.teams[0].label')") == "qmix on 3m"
        assert tab.errors == []


def test_setup_on_colab(tmp_path):
    """The first cell, in an empty folder of a machine that looks like Colab's: it gets the project
    and goes there; at home it leaves extras/ for the folder of the project."""
    home = LESSON.parents[1]
    if not (home / ".git").exists():
        pytest.skip("this is no clone, so there is nothing to clone from")
    setup = cell(read(), "setup").source
    setup = re.sub(r'"https://github.com/.+?"', repr(home.as_uri()), setup)
    setup += "\nimport buffer; print(os.getcwd())"
    fake = tmp_path / "fake" / "google" / "colab"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()
    for words, start, end in (
        ("import google.colab\n", tmp_path, tmp_path / "qmix"),
        ("", LESSON.parent, home),
    ):
        command = [sys.executable, "-c", words + setup]
        paths = os.environ | {"PYTHONPATH": str(tmp_path / "fake")}
        done = subprocess.run(command, cwd=start, env=paths, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.splitlines()[-1]) == end
