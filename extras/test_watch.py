"""Tests of extras/watch.py and its page: numbers, the battle, sizes, and a real browser.

The browser is Chromium without a window, driven through its DevTools pipe.
"""

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train
from agent import Players
from extras import watch
from mixer import MIXERS
from starcraft.draw import SHAPES, draw, window

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SEED = 7


def a_team(map_name="2s3z", mixer="qmix", policy="network"):
    """An untrained team."""
    flags, _ = train.parse_args(["--map", map_name, "--mixer", mixer])
    sim = watch.make_sim(flags, 0)
    torch.manual_seed(0)
    mixing = MIXERS[mixer](sim.n_agents, sim.state_dim)
    return watch.Team(flags, policy, train.make_agent(flags, sim), mixing, f"{mixer} </script>")


def page(path, teams, battles=1):
    """The page of these teams, and its data."""
    played = [[watch.record(team, SEED + i) for i in range(battles)] for team in teams]
    described = [
        watch.describe(team, [b for b, *_ in rows], rows[0][2])
        for team, rows in zip(teams, played, strict=True)
    ]
    ranges = {"sight": watch.SIGHT_RANGE, "shoot": watch.SHOOT_RANGE, "fps": 16}
    watch.write_page(path, {"teams": described, "shapes": SHAPES, "fields": watch.SHOWN} | ranges)
    text = re.search(r'id="data">(.*?)</script>', path.read_text(), re.S)[1]
    return json.loads(text)


def unpack(text, shape, dtype="<f4"):
    return np.frombuffer(base64.b64decode(text), dtype).reshape(shape)


@pytest.mark.parametrize("map_name", ["2s3z", "MMM"])
def test_battle_shown_is_the_battle_played(tmp_path, map_name):
    """An ordinary play of the same seed, unit by unit at every step, and its rewards."""
    team = a_team(map_name, policy="focus")
    data = page(tmp_path / "page.html", [team])["teams"][0]
    battle, loops = data["battles"][0], data["loops"]
    frames = unpack(battle["frames"], (-1, len(data["units"]), len(watch.SHOWN)))
    sim = watch.make_sim(team.flags, SEED)
    for t, reward in enumerate(battle["reward"]):
        units = np.stack([sim.units[0][name] for name in watch.SHOWN], -1).astype(np.float32)
        assert (frames[t * loops] == units).all()
        actions = watch.scripted(sim, "focus")
        assert battle["actions"][t] == actions[0].tolist()
        step = sim.step(actions)
        assert reward == step.reward[0]
    assert step.terminated[0] or step.truncated[0]
    units = np.stack([sim.units[0][name] for name in watch.SHOWN], -1).astype(np.float32)
    assert (frames[-1] == units).all() and len(frames) == len(battle["reward"]) * loops + 1
    assert (battle["result"] == "won") == bool(step.battle_won[0])
    walked = np.abs(np.diff(frames[..., :2], axis=0)).max()
    assert 0 < walked < 0.6, "frames between the steps are missing or out of order"


@pytest.mark.parametrize(("map_name", "seed"), [("2s3z", SEED), ("MMM", SEED), ("MMM", 2)])
def test_nobody_is_hurt_without_a_shot_or_blow(map_name, seed):
    """Every loss of health or shield is where something that is drawn arrives, and at that loop:
    in the last battle also where a Marine shoots and falls in the same loop."""
    battle, frames, _ = watch.record(a_team(map_name, policy="focus"), seed)
    landed = {(e[2] if e[0] == "shot" else e[1], e[4]) for e in battle["events"]}
    life = frames["health"] + frames["shield"]
    hurt = np.argwhere(np.diff(life, axis=0) < -0.5) + np.array([1, 0])
    assert len(hurt) > 50 and all((t, j) in landed for t, j in hurt.tolist())


def test_two_step_page(tmp_path, monkeypatch):
    out = tmp_path / "page.html"
    monkeypatch.setattr(watch.two_step_game, "ROUNDS", 20)
    watch.main(["--two-step", "--out", str(out)])
    truth, qmix, vdn = json.loads(re.search(r'id="data">(.*?)</script>', out.read_text(), re.S)[1])[
        "two_step"
    ]
    paper = watch.two_step_game.PAPER["qmix"]
    np.testing.assert_allclose(truth["tables"], paper, atol=0.006)
    for kind, table in (("qmix", qmix), ("vdn", vdn)):
        wanted = watch.two_step_game.play(kind, 0)
        assert table["tables"] == [wanted[state] for state in watch.two_step_game.STATES]


@pytest.mark.parametrize("mixer", ["qmix", "vdn", "iql"])
def test_numbers_shown_are_those_of_agent_and_mixer(tmp_path, mixer):
    team = a_team(mixer=mixer)
    data = page(tmp_path / "page.html", [team])["teams"][0]
    battle, N, A = data["battles"][0], data["n_agents"], data["n_actions"]
    qs, why = unpack(battle["qs"], (-1, N, A)), unpack(battle["why"], (-1, N, A), np.uint8)
    sim = watch.make_sim(team.flags, SEED)
    players = Players(team.agent, 1, N, A)
    for t in range(len(qs)):
        assert ((why[t] == watch.FREE) == sim.avail_actions[0]).all()
        actions = players.act(sim.obs, sim.avail_actions)
        np.testing.assert_allclose(qs[t], players.agent_qs[0], atol=1e-4)
        state = torch.from_numpy(sim.state.copy()).double()
        if mixer == "iql":
            assert battle["q_tot"][t] is None and battle["slopes"] is None
        else:
            slopes = unpack(battle["slopes"], (-1, N))
            exact = MIXERS[mixer](N, sim.state_dim)
            exact.load_state_dict(team.mixer.state_dict())
            exact.double()
            chosen = torch.tensor(qs[t][np.arange(N), actions[0]]).double()
            with torch.no_grad():  # slopes as differences, without autograd
                q_tot = exact(chosen, state[0]).item()
                nudged = exact(chosen + 1e-5 * torch.eye(N), state.expand(N, -1))
            assert battle["q_tot"][t] == pytest.approx(q_tot, abs=1e-4)
            np.testing.assert_allclose(slopes[t], (nudged - q_tot) / 1e-5, atol=1e-3)
            assert mixer != "vdn" or (slopes == 1).all()
        sim.step(actions)
    discounted = sum(0.99**t * r for t, r in enumerate(battle["reward"]))
    assert battle["to_come"][0] == pytest.approx(discounted, abs=1e-4)


def test_sizes(tmp_path):
    page(tmp_path / "three.html", [a_team()], battles=3)
    assert (tmp_path / "three.html").stat().st_size < 2e6
    page(tmp_path / "big.html", [a_team("27m_vs_30m")])
    assert (tmp_path / "big.html").stat().st_size < 8e6
    text = (tmp_path / "three.html").read_text()
    assert not re.search(r"(src|href)=\"?http|@import|fetch\(", text), "it needs the network"


def test_picture_shows_units_where_they_are():
    sim = watch.make_sim(a_team().flags, 0)
    names, box = sim.type_names, (0, 0, 32, 32)
    picture = draw(sim.units[0], sim.world, names, box, 10)
    assert picture.shape == (320, 320, 3) and picture.dtype == np.uint8
    blue, orange = (0, 0x72, 0xB2), (0xD5, 0x5E, 0)
    for u in sim.units[0]:
        x, y = int(u["x"] * 10), int((32 - u["y"]) * 10)
        near = picture[y - 6 : y + 7, x - 6 : x + 7].reshape(-1, 3)
        assert (near == (blue, orange)[u["side"]]).all(-1).any()
    sim.units["health"] = 0
    assert not (draw(sim.units[0], sim.world, names, box, 10) == blue).all(-1).any()
    x0, y0, x1, y1 = window(watch.make_sim(a_team().flags, 0).units[0])
    assert x1 - x0 > 11.99 and y1 - y0 > 7.99


def test_picture_shows_the_line_that_a_colossus_hits():
    """1.4 cells to either side of its target, across the direction of fire; here along y."""
    sim = watch.make_sim(a_team("2c_vs_64zg").flags, 0)
    units, world = sim.units[0].copy(), sim.world.copy()
    units["health"][[1, *range(3, len(units))]] = 0  # left: one Colossus, one Zergling
    units["x"][[0, 2]], units["y"][[0, 2]] = (10, 15), 16
    units["flight"][0], units["flight_target"][0] = 5, 2
    pictures = []
    for length in (2.8, 0):
        world["kinds"]["line_length"][units["kind"][0]] = length
        pictures.append(draw(units, world, sim.type_names, (0, 0, 32, 32), 20).astype(int))
    rows, columns = np.nonzero(np.abs(pictures[0] - pictures[1]).max(-1) > 20)
    assert 32 - rows.max() / 20 == pytest.approx(14.6, abs=0.1)
    assert 32 - rows.min() / 20 == pytest.approx(17.4, abs=0.1)
    assert np.abs(columns / 20 - 15).max() < 0.2


def test_every_unit_type_has_a_shape():
    assert set(watch.make_sim(a_team().flags, 0).type_names) <= set(SHAPES)


def test_command_line(tmp_path, capsys):
    out = ["--out", str(tmp_path / "page.html")]
    files = ["--gif", str(tmp_path / "b.gif"), "--png", str(tmp_path / "b.png")]
    watch.main(["--policy", "closest", "--map", "3m", "--battles", "1", *out, *files])
    assert (tmp_path / "b.gif").read_bytes()[:3] == b"GIF"
    assert (tmp_path / "b.png").read_bytes()[1:4] == b"PNG"
    capsys.readouterr()
    wrong = [[], ["nowhere"], ["--policy", "closest", "--map", "4m"], ["--two-step", "x"]]
    wrong += [["x", "--map", "3m"], ["--two-step", *files], ["x", "--png", "nowhere/b.png"]]
    said = {"--map": "--map is for --policy alone", "--png": "in a folder that exists"}
    for words in wrong:
        with pytest.raises(SystemExit) as stop:
            watch.main([*words, *out])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1, error
        assert words[:1] != ["x"] or said[words[1]] in error


def test_a_run_of_train_is_watched(tmp_path):
    run, out = tmp_path / "run", tmp_path / "page.html"
    words = "--env sim --map 3m --mixer vdn --steps 300 --n-envs 2 --test-episodes 2 --threads 1"
    words += " --device cpu --batch-size 2"
    assert train.main([*words.split(), "--run-dir", str(run)]) == 0
    shown = watch.open_team(run, "network", None).agent.fc2.bias
    learner = torch.load(run / "checkpoint.pt", weights_only=True)["learner"]
    assert torch.equal(shown, learner["average"]["fc2.bias"]), "the agent that tests play"
    assert not torch.equal(shown, learner["agent"]["fc2.bias"])
    watch.main(["--compare", str(run), str(run), "--battles", "1", "--out", str(out)])
    data = json.loads(re.search(r'id="data">(.*?)</script>', out.read_text(), re.S)[1])
    assert data["teams"][0] == data["teams"][1] and data["teams"][0]["mixer"] == "vdn"


# ---- In a browser ------------------------------------------------------


def is_error(message):
    """Whether a message of the DevTools protocol says that something went wrong in the page."""
    method, params = message.get("method", ""), message.get("params", {})
    if method in ("Log.entryAdded", "Runtime.consoleAPICalled"):
        return "error" in (params.get("type"), params.get("entry", {}).get("level"))
    return method == "Runtime.exceptionThrown"


@contextlib.contextmanager
def browser(path, width=1200, height=900, dark=False):
    """A page in Chromium: ask(method, **params) of the DevTools protocol, run(javascript)."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    profile = path.parent / f"profile{width}{dark}"
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--remote-debugging-pipe",
               "--disable-gpu", f"--user-data-dir={profile}"]  # fmt: skip

    def connect():  # what the option expects: 3 to read from, 4 to write to
        spare_in, spare_out = os.dup(theirs_in), os.dup(theirs_out)
        os.dup2(spare_in, 3)
        os.dup2(spare_out, 4)

    process = subprocess.Popen(
        command, preexec_fn=connect, close_fds=False, stderr=subprocess.DEVNULL
    )
    os.close(theirs_in), os.close(theirs_out)
    stream, errors, session, count = os.fdopen(ours_in, "rb"), [], {}, 0

    def message():
        text = b""
        while not text.endswith(b"\0"):
            byte = stream.read(1)
            assert byte, "Chromium ended"
            text += byte
        found = json.loads(text[:-1])
        if is_error(found):
            errors.append(found)
        return found

    def ask(method, **params):
        nonlocal count
        count += 1
        text = {"id": count, "method": method, "params": params} | session
        os.write(ours_out, json.dumps(text).encode() + b"\0")
        while (answer := message()).get("id") != count:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def run(script):
        answer = ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    try:
        target = ask("Target.createTarget", url="about:blank")["targetId"]
        opened = ask("Target.attachToTarget", targetId=target, flatten=True)
        session["sessionId"] = opened["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            ask(f"{domain}.enable")
        ask("Emulation.setDeviceMetricsOverride", width=width, height=height,
            deviceScaleFactor=1, mobile=width < 600)  # fmt: skip
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        ask("Emulation.setEmulatedMedia", features=[theme])
        ask("Page.navigate", url=path.resolve().as_uri())
        while message().get("method") != "Page.loadEventFired":
            pass
        yield SimpleNamespace(ask=ask, run=run, errors=errors)
    finally:
        process.kill()
        process.wait()
        os.close(ours_out)
        stream.close()


def press(tab, key):
    for kind in ("keyDown", "keyUp"):
        tab.ask("Input.dispatchKeyEvent", type=kind, key=key)


def click(tab, x, y):
    for kind in ("mousePressed", "mouseReleased"):
        tab.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


def click_unit(tab, team, i):
    """A click on unit i of the battle of a team."""
    x, y = tab.run(f"""(() => {{
        const r = $('field{team}').getBoundingClientRect(), u = unitAt({team}, {i}, view.time);
        const of = (f, n) => f(...shown.map(battle => battle.box[n]));  // one window for all
        const [x0, y0] = [of(Math.min, 0), of(Math.min, 1)];
        const [x1, y1] = [of(Math.max, 2), of(Math.max, 3)];
        const c = r.height / (y1 - y0);
        return [r.x + r.width / 2 + (u.x - (x0 + x1) / 2) * c, r.y + (y1 - u.y) * c];
    }})()""")
    click(tab, x, y)


def q_values(tab):
    return tab.run("[...$('actions').children].map(row => Number(row.dataset.q))")


PIXELS = "document.getElementById('field0').toDataURL()"
WAIT = "new Promise(done => setTimeout(done, 700))"
NARROW = "document.documentElement.scrollWidth <= innerWidth"
in_a_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium here: apt-get install chromium"
)


@in_a_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390], ids=["desktop", "phone"])
def test_page_in_a_browser(tmp_path, width, dark):
    data = page(tmp_path / "page.html", [a_team()])["teams"][0]
    N, A = data["n_agents"], data["n_actions"]
    qs = unpack(data["battles"][0]["qs"], (-1, N, A))
    with browser(tmp_path / "page.html", width, dark=dark) as tab:
        tab.run(WAIT)
        time, pixels = tab.run("view.time"), tab.run(PIXELS)
        assert time > 0, "it does not play by itself"
        tab.run(WAIT)
        assert tab.run("view.time") > time and tab.run(PIXELS) != pixels
        press(tab, " ")
        assert tab.run("view.playing") is False
        tab.run("$('time').value = 84; $('time').dispatchEvent(new Event('input'))")
        assert tab.run("view.time") == 84
        press(tab, "ArrowRight")
        assert tab.run("view.time") == 88
        press(tab, ".")
        assert tab.run("view.time") == 89
        tab.run("seek(24)")
        for i in (3, 0):
            click_unit(tab, 0, i)
            assert tab.run("view.agent") == i
            np.testing.assert_allclose(q_values(tab), qs[3, i], atol=1e-4)
        press(tab, "ArrowDown")
        assert tab.run("view.agent") == 1 and "Agent 1" in tab.run("$('who').textContent")
        background = tab.run("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background))) < 380) == dark
        assert tab.run(NARROW), "wider than the screen"
        assert tab.errors == []


@in_a_browser
@pytest.mark.parametrize("width", [1200, 390], ids=["desktop", "phone"])
def test_compare_in_a_browser(tmp_path, width):
    """QMIX beside VDN: both battles draw, and the values shown are those of the team clicked on."""
    teams = [a_team(mixer=mixer) for mixer in ("qmix", "vdn")]
    with torch.no_grad():
        for weight in teams[1].agent.parameters():
            weight.mul_(-1)  # another network, so that a mix-up would be seen
    data = page(tmp_path / "page.html", teams)["teams"]
    sim = watch.make_sim(teams[0].flags, SEED)
    with browser(tmp_path / "page.html", width) as tab:
        both = "[0, 1].map(k => $('field' + k).toDataURL())"
        pixels = tab.run(both)
        tab.run(WAIT)
        assert all(a != b for a, b in zip(pixels, tab.run(both), strict=True))
        tab.run("view.playing = false, seek(0)")
        for k, i in ((1, 2), (0, 4)):
            tab.run(f"$('field{k}').scrollIntoView()")
            click_unit(tab, k, i)
            assert tab.run("[view.team, view.agent]") == [k, i]
            players = Players(teams[k].agent, 1, sim.n_agents, sim.n_actions)
            players.act(sim.obs, sim.avail_actions)
            np.testing.assert_allclose(q_values(tab), players.agent_qs[0, i], atol=1e-4)
            q_tot = f"{data[k]['battles'][0]['q_tot'][0]:.2f}"
            assert q_tot in tab.run("$('value-key').textContent")
            said = tab.run("$('weight-key').textContent")
            assert ("Agent 2 (thick): 1.000" in said and "VDN" in said) == (k == 1)
        titles = tab.run("[...document.querySelectorAll('#fields h2')].map(h => h.textContent)")
        assert titles == [team.label for team in teams]
        assert tab.run(NARROW) and tab.errors == []


@in_a_browser
@pytest.mark.parametrize("width", [1200, 390], ids=["desktop", "phone"])
def test_two_step_page_in_a_browser(tmp_path, monkeypatch, width):
    monkeypatch.setattr(watch.two_step_game, "ROUNDS", 20)
    wanted = watch.two_step()
    watch.write_page(tmp_path / "page.html", wanted)
    with browser(tmp_path / "page.html", width) as tab:
        assert tab.run("$('watch').hidden && $('battle').hidden")
        cells = tab.run(
            "[...document.querySelectorAll('td')].map(cell => [cell.textContent, cell.className])"
        )
        tables = [table for card in wanted["two_step"] for table in card["tables"]]
        assert len(tables) == 9 and len(cells) == 36
        shown = np.array([float(text) for text, _ in cells]).reshape(9, 2, 2)
        np.testing.assert_allclose(shown, tables, atol=0.0051)
        framed = np.array([name == "best" for _, name in cells]).reshape(9, 4)
        assert framed[2].tolist() == [False, False, False, True]  # 8, of the truth in 2B
        largest = np.reshape(tables, (9, 4)).argmax(1)
        assert framed[np.arange(9), largest].all()
        labels = tab.run("[...document.querySelectorAll('#two-step h2')].map(h => h.textContent)")
        assert labels == ["the truth", "qmix, as learned", "vdn, as learned"]
        box = tab.run("(r => [r.width, r.height])($('two-step').getBoundingClientRect())")
        assert min(box) > 300 and tab.run(NARROW) and tab.errors == []


@in_a_browser
@pytest.mark.parametrize(
    ("map_name", "what", "field", "reach"),
    [
        ("2c_vs_64zg", "shot", "line_length", 1.4),
        ("so_many_baneling", "blast", "blast_radius", 2.2),
    ],
)
def test_splash_and_blast_are_as_wide_as_they_hit(tmp_path, map_name, what, field, reach):
    """A Colossus hits 1.4 cells to either side of its target, a Baneling all within 2.2: as far
    reaches what is gone from the picture once the page takes the width for 0."""
    team = page(tmp_path / "page.html", [a_team(map_name, policy="focus")])["teams"][0]
    events = team["battles"][0]["events"]
    _, first, last, i, j = next(e for e in events if e[0] == what and team["units"][e[3]][field])
    script = f"""(() => {{
        view.playing = false;
        seek({last if what == "shot" else first});
        const canvas = $('field0'), u = unitAt(0, {i}, view.time), v = unitAt(0, {j}, view.time);
        const pen = canvas.getContext('2d');
        const pixels = () => pen.getImageData(0, 0, canvas.width, canvas.height).data;
        const {{ x0, y1, cell }} = lens(canvas), far = Math.hypot(v.x - u.x, v.y - u.y);
        const [ax, ay] = far ? [(u.y - v.y) / far, (v.x - u.x) / far] : [1, 0];
        const shown = pixels();
        data.teams[0].units[{i}].{field} = 0;
        refresh();
        let most = 0;
        pixels().forEach((value, n) => {{
            if (Math.abs(value - shown[n]) < 10) return;
            const pixel = Math.floor(n / 4), x = x0 + pixel % canvas.width / cell;
            const y = y1 - Math.floor(pixel / canvas.width) / cell;
            most = Math.max(most, Math.abs((x - v.x) * ax + (y - v.y) * ay));
        }});
        return most;
    }})()"""
    with browser(tmp_path / "page.html", height=700) as tab:
        bottom = tab.run("$('play').getBoundingClientRect().bottom")
        assert bottom < 700, "the controls are below the screen"
        assert tab.run(script) == pytest.approx(reach, abs=0.15)
        assert tab.errors == []


@in_a_browser
@pytest.mark.slow
def test_a_large_battle_is_smooth(tmp_path, capsys):
    """27m_vs_30m: how soon the page plays, and its frames a second; wide bounds, for slow machines
    without a graphics card."""
    page(tmp_path / "page.html", [a_team("27m_vs_30m", policy="focus")])
    with browser(tmp_path / "page.html") as tab:
        until_it_plays = """new Promise(done => { const look = () => view.frames > 1 ?
            done(performance.now()) : setTimeout(look, 10); look(); })"""
        seconds = tab.run(until_it_plays) / 1000
        count = """new Promise(done => { const first = view.frames, from = performance.now();
            const rate = () => 1000 * (view.frames - first) / (performance.now() - from);
            setTimeout(() => done(rate()), 3000); })"""
        rate = tab.run(count)
        with capsys.disabled():
            print(f"\n27m_vs_30m: plays {seconds:.2f} s after it was opened, {rate:.0f} frames/s")
        assert seconds < 3 and rate > 20 and tab.errors == []
