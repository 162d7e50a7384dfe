"""A worker process of sc2.py: it starts one StarCraft II and plays as it is told through a pipe.

Run by path, not as a module of the package: it starts sooner, and needs neither torch nor numba.
SMAC: https://arxiv.org/abs/1902.04043

Shapes: N agents, A actions, O observation, S state.
"""

import contextlib
import multiprocessing.connection
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np


def play_game(pipe_fd):
    """What a worker process does: start a game, then reset, step and save replays as it is told.

    Answers (None, answer), or (what went wrong, None), after which it ends itself and the game.
    """
    pipe = multiprocessing.connection.Connection(pipe_fd)
    threading.Thread(target=die_with_trainer, args=(pipe_fd,), daemon=True).start()
    try:
        sys.path[:] = pipe.recv()
        delay, patience, (map_name, seed, make_game) = pipe.recv()
        time.sleep(delay)
        if make_game is None:
            game, version = open_smac(map_name, seed, patience)
        else:
            game, version = make_game(map_name=map_name, seed=seed), "made for a test"
            game.reset()
        pipe.send((None, ((game.get_env_info(), version), first_sight(game))))
        while True:
            request, *arguments = pipe.recv()
            if request == "step":
                reward, over, info = game.step(*arguments)
                if not info:
                    raise RuntimeError("StarCraft II had to be restarted")
                limit = bool(info.get("episode_limit", False))
                result = (reward, over and not limit, limit, info["battle_won"])
                pipe.send((None, (result, sight(game))))
                if over:
                    request = "reset"  # now, while the other games still play this step
            if request == "reset":
                game.reset()
                pipe.send((None, (None, first_sight(game))))
            if request == "save_replay":
                game.replay_dir, game.replay_prefix = arguments
                game.save_replay()
                files = Path(game.replay_dir).glob(game.replay_prefix + "_*")
                pipe.send((None, str(max(files, key=os.path.getmtime))))
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
        with contextlib.suppress(OSError):
            pipe.send((reason, None))
    os.killpg(0, signal.SIGKILL)


def die_with_trainer(pipe_fd):
    """Wait, in a thread, until the trainer is gone, however it went, and end this process group."""
    hangup = select.poll()
    hangup.register(pipe_fd, 0)  # 0: wake for nothing but a hang-up
    hangup.poll()
    os.killpg(0, signal.SIGKILL)


def open_smac(map_name, seed, patience):
    """A started smac.env.StarCraft2Env, every fault of which raises, and the game's version."""
    from absl import flags
    from smac.env import StarCraft2Env

    flags.FLAGS.sc2_timeout = max(int(patience), 1)  # pysc2's; the trainer has its own for steps
    # continuing_episode only makes smac tell a time limit from a defeat, as info["episode_limit"]
    game = StarCraft2Env(map_name=map_name, seed=seed, continuing_episode=True)

    def full_restart():
        raise RuntimeError("StarCraft II crashed or reported an error")

    game.full_restart = full_restart  # smac's goes on with stale units and a wrong max_reward
    game.reset()
    # Right even if units came late, when smac has counted some of them twice
    units = [unit.health_max + unit.shield_max for unit in game.enemies.values()]
    game.max_reward = game.n_enemies * game.reward_death_value + game.reward_win + sum(units)
    # While this is 0 a reset would launch a second game and count max_reward again
    game._episode_count = 1
    ping = game._controller.ping()
    return game, f"StarCraft II {ping.game_version} (build {ping.base_build})"


def sight(game):
    """(obs (N, O), state (S,), avail_actions (N, A)) of one game."""
    return (
        np.array(game.get_obs(), np.float32),
        np.array(game.get_state(), np.float32),
        np.array(game.get_avail_actions(), bool),
    )


def first_sight(game):
    """`sight` after a reset, when nobody can be dead: no-op, action 0, is for the dead only."""
    obs, state, avail_actions = sight(game)
    if avail_actions[:, 0].any():
        raise RuntimeError("dead units after a reset")
    return obs, state, avail_actions


if __name__ == "__main__":
    # Played by a second process, which sees the trainer go and takes the game with it. The first
    # one may be killed alone: Ray does that to whatever stands right below an actor that ends.
    if os.fork():
        os.wait()
        os._exit(0)
    play_game(int(sys.argv[1]))
