"""See what a team learned with QMIX (https://arxiv.org/abs/1803.11485): battles on the simulator,
and what the network thinks while they go on, as one HTML file that opens in any browser.

    python -m extras.watch RUN_DIR                          # watch.html
    python -m extras.watch RUN_DIR --gif battle.gif --png battle.png
    python -m extras.watch RUN_DIR --policy focus           # a scripted player; RUN_DIR's values
    python -m extras.watch --policy closest --map MMM       # without any network
    python -m extras.watch --compare RUN_A RUN_B            # side by side from the same start
    python -m extras.watch --two-step                       # Table 2 of the paper, as learned here

Battle i is the first one that `train.py --evaluate RUN_DIR` plays in its environment i. The agents
are those of the tests, averages of the weights (--average-rate); the mixer is the newest one, since
none is averaged. Where weights still move fast Q_tot is of no single moment.

Shapes: T steps, L game loops, U = N + M units, N agents, A actions.
"""

import base64
import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import train
import two_step_game
from agent import Players
from envs import TwoStepGame, make_env
from extras.files import load_weights, network, newest, read_config
from extras.flags import Parser, number
from extras.run import say
from learner import at
from mixer import MIXERS
from starcraft.draw import SHAPES, draw, window
from starcraft.interface import SHOOT_RANGE, SIGHT_RANGE
from starcraft.maps import FIRST_TARGET, LOOPS_PER_SECOND
from starcraft.scripted import PLAYERS, scripted
from starcraft.simulator import random_actions

POLICIES = "network", *PLAYERS
SHOWN = "x", "y", "health", "shield", "energy", "cooldown", "target"  # of each unit, every loop
MOVES = "no-op", "stop", "north", "south", "east", "west"
FREE, DEAD, ALIVE, WALL, GONE, FAR, NO_PATIENT = range(7)  # why an action is not available
TEMPLATE = Path(__file__).with_name("watch.html")
GIF_EVERY = 2  # loops


class Team(NamedTuple):
    """Who plays: flags of the run (train.py's), the policy, and the networks (None: none)."""

    flags: Namespace
    policy: str
    agent: torch.nn.Module | None
    mixer: torch.nn.Module | None
    label: str


def open_team(folder, policy, map_name):
    """The Team of a run directory, or a scripted one on a map. Raises ValueError, one line, or
    exits with one where config.json has what train.py would refuse."""
    if folder is None:
        flags, _ = train.parse_args([f"--map={map_name}"])
        return Team(flags, policy, None, None, f"{policy} on {map_name}")
    config = read_config(folder)
    flags, _ = train.parse_args([f"--evaluate={folder}"])
    if config["env"]["name"] not in ("sim", "sc2"):
        raise ValueError(f"{folder} played {config['env']['name']}: only battles can be watched")
    if config["env"]["name"] != "sim":
        flags.env_args = []  # those of the real game
    sim, state = make_sim(flags, 0), newest(folder)
    agent = train.make_agent(flags, sim)
    load_weights(agent, network(state, "average"))
    widths = flags.mixing_embed_dim, flags.hypernet_layers, flags.hypernet_embed
    mixer = MIXERS[flags.mixer](sim.n_agents, sim.state_dim, *widths)
    if mixer:
        load_weights(mixer.eval(), network(state, "mixer"))
    player = flags.mixer if policy == "network" else policy
    return Team(flags, policy, agent, mixer, f"{player} on {flags.map}")


def make_sim(flags, seed):
    """One battle, begun anew, as tests begin: so it is what a test with this seed plays first."""
    sim = make_env("sim", flags.map, 1, seed, **dict(flags.env_args))
    sim.reset()
    return sim


# ---- Playing and recording -------------------------------------------


def play_step(sim, actions):
    """One step of one battle. Returns (Step, the units (U,) after each of its game loops).

    The step is played several times from the same start, a loop longer each time: so the last time
    it is the ordinary step, and what was recorded cannot change the battle.
    """
    saved, may, units = sim.state_dict(), sim.avail_actions.copy(), []
    for loops in range(1, int(sim.world["step_mul"]) + 1):
        sim.load_state_dict(saved)
        sim.avail_actions[:] = may  # "closest" has entered more than the battle itself tells
        sim.world["step_mul"] = loops
        step = sim.step(actions)
        units.append(sim.units[0].copy())
    return step, units


def reasons(sim):
    """(N, A) uint8: FREE, or why the agent cannot do it."""
    N, units, kinds = sim.n_agents, sim.units[0], sim.world["kinds"][sim.units[0]["kind"]]
    why = np.full((N, sim.n_actions), WALL, np.uint8)
    for i in range(N):
        healer = kinds["heal_rate"][i] > 0
        for j in range(sim.n_enemies):
            k = j if healer else N + j
            if healer and (j >= N or kinds["heal_rate"][j] > 0):
                why[i, FIRST_TARGET + j] = NO_PATIENT
            else:
                why[i, FIRST_TARGET + j] = FAR if units["health"][k] > 0 else GONE
    why[:, 0] = ALIVE
    why[units["health"][:N] <= 0] = DEAD
    why[sim.avail_actions[0]] = FREE
    return why


def think(mixer, agent_qs, state, actions):
    """Q_tot of what is done, and dQ_tot/dQ_a (N,): (None, None) without a mixer.

    agent_qs (1, N, A), state (1, S) float32, actions (1, N) int64.
    """
    if mixer is None:
        return None, None
    chosen = at(agent_qs.clone(), torch.from_numpy(actions)).requires_grad_()  # (1, N)
    q_tot = mixer(chosen, torch.from_numpy(state))  # (1,)
    (slopes,) = torch.autograd.grad(q_tot.sum(), chosen)
    return q_tot.item(), slopes[0].numpy()


def record(team, seed):
    """One battle: (what the page shows of it, its frames (L + 1, U) UNIT, the simulator)."""
    sim, rng = make_sim(team.flags, seed), np.random.default_rng(seed)
    players = team.agent and Players(team.agent, 1, sim.n_agents, sim.n_actions)
    frames, log, over = [sim.units[0].copy()], [], False
    while not over:
        if players:
            actions = players.act(sim.obs, sim.avail_actions)
        if team.policy == "random":
            actions = random_actions(sim.avail_actions, rng)
        elif team.policy != "network":
            actions = scripted(sim, team.policy)
        row = {"actions": actions[0].tolist(), "why": reasons(sim)}
        if players:
            players.last_actions = torch.from_numpy(actions)  # what was done, whoever chose it
            q_tot, slopes = think(team.mixer, players.agent_qs, sim.state, actions)
            row |= {"qs": players.agent_qs[0].numpy(), "q_tot": q_tot, "slopes": slopes}
        step, loops = play_step(sim, actions)
        frames += loops
        log.append(row | {"reward": float(step.reward[0])})
        over = step.terminated[0] or step.truncated[0]
    to_come = 0.0
    for row in reversed(log):
        row["to_come"] = to_come = row["reward"] + team.flags.gamma * to_come
    frames = np.stack(frames)
    fallen = (frames[-1]["health"] <= 0).all()  # Banelings can end both sides at once
    lost = "drawn" if fallen else "time is up" if step.truncated[0] else "lost"
    result = "won" if step.battle_won[0] else lost
    shown = np.stack([frames[name] for name in SHOWN], -1)  # (L + 1, U, 7)
    battle = {"seed": seed, "result": result, "frames": pack(shown), "box": window(frames)}
    battle |= {"events": events(frames, sim.world), "why": pack([r["why"] for r in log], np.uint8)}
    for name in ("actions", "reward", "to_come", "q_tot"):
        battle[name] = [row.get(name) for row in log]
    for name in ("qs", "slopes"):
        there = log[0].get(name) is not None
        battle[name] = pack([row[name] for row in log]) if there else None
    return battle, frames, sim


def events(frames, world):
    """[what, first loop, last loop, who, at whom]: shots in flight, blows, healing, deaths."""
    found, kinds = [], world["kinds"][frames[0]["kind"]]
    for i in range(frames.shape[1]):
        kind, u = kinds[i], frames[:, i]
        since = None
        for t in range(1, len(frames)):
            before, now = u[t - 1], u[t]
            if before["health"] > 0 and now["health"] <= 0:
                found.append(["blast" if kind["suicide"] else "death", t, t + 8, i, i])
            shoots = kind["missile_speed"] > 0 or kind["flight"] > 0
            if now["flight"] >= 0:
                since = t if since is None else since
            elif since is not None:
                what, first = ("shot", since) if shoots else ("blow", t)
                # Who is dead lands no second blow; one that was broken off never lands.
                if before["flight"] <= 1 and (shoots or now["health"] > 0):
                    found.append([what, first, t, i, int(before["flight_target"])])
                since = None
            if before["health"] <= 0 or now["target"] < 0:
                continue
            dies = now["health"] <= 0
            if kind["heal_rate"] > 0 and now["energy"] < before["energy"] and not dies:
                found.append(["heal", t, t, i, int(now["target"])])
            # The cooldown of who died before its turn stands still.
            raised = 0 <= before["windup"] <= 1 and now["cooldown"] < before["cooldown"]
            raised |= now["cooldown"] > before["cooldown"]
            if raised and now["windup"] < 0 and now["cooldown"] > 0 and not shoots:
                found.append(["blow", t, t + 2, i, int(now["target"])])
    return sorted(found, key=lambda event: event[1])


def pack(array, dtype=np.float32):
    """An array's bytes (little-endian) as text."""
    array = np.asarray(array, np.dtype(dtype).newbyteorder("<"))
    return base64.b64encode(array.tobytes()).decode()


# ---- What is written -------------------------------------------------


def side_by_side(recorded, sims):
    """A function of (loop, pixels per cell) -> (H, W, 3) uint8, all teams' battles from one start
    beside each other; and the loops of the longest."""
    boxes = np.array([window(frames) for frames in recorded])  # (teams, 4): one window for all
    box = (*boxes[:, :2].min(0), *boxes[:, 2:].max(0))

    def picture(loop, cell):
        moments = [frames[min(loop, len(frames) - 1)] for frames in recorded]
        pairs = zip(moments, sims, strict=True)
        return np.concatenate(
            [draw(units, sim.world, sim.type_names, box, cell) for units, sim in pairs], axis=1
        )

    return picture, max(map(len, recorded))


def write_gif(path, picture, length):
    from PIL import Image

    images = [Image.fromarray(picture(t, 24)) for t in range(0, length, GIF_EVERY)]
    palette = images[len(images) // 2].quantize(48)  # one for all: smaller, and no flicker
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    pause = 1000 * GIF_EVERY // LOOPS_PER_SECOND
    images[0].save(path, save_all=True, append_images=images[1:], duration=pause, loop=0)


def write_png(path, picture, length, moments=5):
    from PIL import Image

    times = np.linspace(0, length - 1, moments).round().astype(int)
    strip = [np.pad(picture(t, 16), ((0, 0), (0, 4), (0, 0)), constant_values=255) for t in times]
    Image.fromarray(np.concatenate(strip, axis=1)).save(path)


def describe(team, battles, sim):
    """What the page must know of a team besides its battles."""
    kinds = sim.world["kinds"]
    names = ("health", "shield", "energy_max", "line_length", "blast_radius", "period")
    units = [
        {"type": sim.type_names[u["kind"]], "side": int(u["side"]), "radius": float(u["radius"])}
        | {name: float(kinds[u["kind"]][name]) for name in names}
        | {"heals": bool(kinds[u["kind"]]["heal_rate"] > 0)}
        for u in sim._template
    ]
    return {
        "label": team.label, "mixer": team.agent and team.flags.mixer, "gamma": team.flags.gamma,
        "n_agents": sim.n_agents, "n_actions": sim.n_actions, "units": units, "moves": MOVES,
        "loops": int(sim.world["step_mul"]), "walkable": sim.world["walkable"].tolist(),
        "battles": battles,
    }  # fmt: skip


def two_step():
    """Table 2: the truth, and what QMIX and VDN learned."""
    truth = TwoStepGame.PAYOFF.tolist()
    truth[0] = [[0.99 * max(map(max, truth[1 + a]))] * 2 for a in range(2)]
    learned = [two_step_game.play(kind, 0) for kind in ("qmix", "vdn")]
    tables = [{"label": "the truth", "tables": truth, "greedy_return": 8}]
    for result in learned:
        values = [result[state] for state in two_step_game.STATES]
        label = f"{result['mixer']}, as learned"
        tables.append({"label": label, "tables": values, "greedy_return": result["greedy_return"]})
    return {"two_step": tables}


def write_page(path, data):
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    path.write_text(TEMPLATE.read_text(encoding="utf-8").replace("{{DATA}}", text), "utf-8")
    say(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB): open it in a browser")


def parse_args(argv=None):
    p = Parser(prog="watch.py", description="Battles of a trained team, as a page, GIF or strip.")
    p.add_argument("run", nargs="?", type=Path, metavar="RUN_DIR", help="made by train.py")
    p.add_argument("--compare", nargs=2, type=Path, metavar="RUN_DIR", help="two side by side")
    p.add_argument("--policy", choices=POLICIES, default="network", help="who plays")
    p.add_argument("--map", help="SMAC map, without RUN_DIR; if there is none, 2s3z")
    p.add_argument("--battles", type=number(int, 1, 100), default=3, help="how many")
    p.add_argument("--out", type=Path, default=Path("watch.html"), help="the page")
    p.add_argument("--gif", type=Path, help="the first battle, as a GIF too")
    p.add_argument("--png", type=Path, help="five moments of the first battle, too")
    p.add_argument("--two-step", action="store_true", help="the payoffs of the two-step game")
    args = p.parse_args(argv)
    ways = (args.run is not None) + (args.compare is not None) + args.two_step
    if ways > 1 or (ways == 0 and args.policy == "network"):
        p.error("give one of RUN_DIR, --compare RUN_A RUN_B, --two-step, or --policy closest")
    if args.map and ways:
        p.error("--map is for --policy alone, runs have their own: leave it out")
    if args.two_step and (args.gif or args.png or args.policy != "network"):
        p.error("--two-step makes a page and plays no battles: leave out --gif, --png and --policy")
    for path, suffix in ((args.out, ".html"), (args.gif, ".gif"), (args.png, ".png")):
        if path and (path.suffix != suffix or not path.parent.is_dir()):
            p.error(f"{path} must end in {suffix} and lie in a folder that exists")
    args.map = args.map or "2s3z"
    return args, p


def main(argv=None):
    args, parser = parse_args(argv)
    torch.set_num_threads(1)
    with parser.refuses():
        if args.two_step:
            return write_page(args.out, two_step())
        teams = [open_team(f, args.policy, args.map) for f in args.compare or [args.run]]
        if len({team.flags.map for team in teams}) > 1:
            raise ValueError("--compare: both runs must be on the same map")
        flags = teams[0].flags
        seed = train.SEEDS_PER_RUN * flags.seed + train.EVALUATION_SEEDS
        played = [[record(team, seed + i) for i in range(args.battles)] for team in teams]
        _, recorded, sims = zip(*(battles[0] for battles in played), strict=True)
        picture = side_by_side(recorded, sims)
        for path, write in ((args.gif, write_gif), (args.png, write_png)):
            if path:
                write(path, *picture)
                say(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")
        described = [
            describe(team, [battle for battle, *_ in battles], battles[0][2])
            for team, battles in zip(teams, played, strict=True)
        ]
        ranges = {"sight": SIGHT_RANGE, "shoot": SHOOT_RANGE, "fps": LOOPS_PER_SECOND}
        write_page(args.out, {"teams": described, "shapes": SHAPES, "fields": SHOWN} | ranges)


if __name__ == "__main__":
    sys.exit(main())
