"""Trained networks of QMIX (https://arxiv.org/abs/1803.11485): what they are worth, and as a
beginning for other runs.

Not a script: python train.py --evaluate RUN_DIR --test-episodes 256
              python train.py --init-from RUN_DIR --env sc2
"""

import json
from pathlib import Path

import numpy as np

from envs import make_env
from extras.device import choose_device
from extras.files import load, load_weights, network, newest, read_config


def evaluate(args, seed, make_agent, play_episodes) -> int:
    """Greedy episodes with the network of args.evaluate, in its environment or another one, and
    what came of them on stdout. Returns the exit status.

    seed: of the first environment. make_agent(args, env), play_episodes: train.py's. Raises
    ValueError, one line, where something does not fit.
    """
    n_envs = args.n_envs and min(args.n_envs, args.test_episodes)
    env = make_env(args.env, args.map, n_envs, seed, **dict(args.env_args))
    if args.save_replay and not hasattr(env, "save_replay"):
        raise ValueError(
            f"--save-replay: {env.name} has no replay files here, only --env sc2 has, without Ray"
            " (--env-args ray=None)"
        )
    agent = make_agent(args, env).to("cpu" if args.device == "auto" else choose_device(args, env))
    load_weights(agent, weights_of(args))
    played, aborted = play_episodes(agent, env, args.test_episodes)
    replays = env.save_replay(args.evaluate / "replays") if args.save_replay else []
    env.close()
    _, returns, won, _ = np.mean(played, axis=0)
    trained_on = read_config(args.evaluate)["env"]["name"]
    if args.json:
        episodes = [  # of one environment they come in order, all from its one seed
            {"seed": seed + int(e), "return": total, "won": bool(win), "length": int(length)}
            for e, total, win, length in played
        ]
        means = {"test_win_rate": won, "test_return": returns, "aborted_episodes": aborted}
        where = {"env": env.name, "trained_on": trained_on}
        print(json.dumps(where | means | {"replays": replays, "episodes": episodes}))
        return 0
    for path in replays:
        print(f"replay: {path}")
    if trained_on != env.name:
        print(f"Trained on {trained_on}, played on {env.name} ({getattr(env, 'version', '')}).")
    print(f"test_win_rate={won:.3f} test_return={returns:.1f} episodes={len(played)}")
    return 0


def weights_of(args) -> dict:
    """The agent of tests, in the last checkpoint of args.evaluate or in that of its best test."""
    best = args.evaluate / "best.pt"
    if args.best and not best.is_file():
        raise ValueError(f"{args.evaluate} has no best.pt: leave out --best")
    if args.best:
        return load(best)
    return network(newest(args.evaluate), "average")


def init_from(args, learner) -> None:
    """Put the weights of the run args.init_from into the networks of a new one, and into its target
    networks: the agent of its tests, and the latest mixer, as no average of mixers is kept. The
    optimiser begins anew, and the mixer where that run had another one. Raises ValueError, one
    line, where the weights do not fit."""
    folder = Path(args.init_from)
    before = read_config(folder)["flags"]["mixer"]
    state = newest(folder)
    for agent in (learner.agent, learner.average):
        load_weights(agent, network(state, "average"))
    if learner.mixer and before == args.mixer:
        load_weights(learner.mixer, network(state, "mixer"))
    elif learner.mixer:
        print(f"The mixer of {folder} is {before}: {args.mixer} begins anew.")
    learner.sync_target()
