"""Train QMIX (https://arxiv.org/abs/1803.11485) and its ablations; evaluate and resume runs.

    python train.py                                       # QMIX on 2s3z
    python train.py --map 3m --mixer vdn --seed 2         # --help lists all flags (flags.py)
    python train.py --resume runs/sim_2s3z_qmix_s1_...    # goes on where that run stopped
    python train.py --evaluate runs/sim_2s3z_qmix_s1_... --test-episodes 256
    python plot.py runs/*                                 # learning curves

Every run leaves a directory behind; run.py says what is in it.

Shapes: E environments, N agents, A actions, O observation, S state, H GRU width.
"""

import contextlib
import math
import shutil
import sys
import time
from types import SimpleNamespace

import numpy as np
import torch
from flags import NOT_KEPT, parse_args
from run import (
    BufferFiles,
    Progress,
    Stop,
    TensorBoard,
    describe,
    killed_at_once,
    load_checkpoint,
    load_weights,
    report,
    restore,
    save_checkpoint,
    say,
    state_of,
    write_config,
    write_metrics,
)
from tqdm.auto import tqdm

from agent import RNNAgent, build_inputs, epsilon_greedy
from buffer import Batch, ReplayBuffer
from envs import GameUnavailable, make_env
from learner import QLearner
from mixer import Mixer

# Battle i of a run is seeded 10000 * seed + i; those of its tests and of --evaluate lie further on.
# So no two battles share a seed, not even in runs with neighbouring seeds.
SEEDS_PER_RUN, TEST_SEEDS, EVALUATION_SEEDS = 10_000, 4_000, 8_000
AUTO_BUFFER_BYTES = 4e9  # --save-buffer auto: a full buffer may have so many, if the disk has
TEST_BATTLES = 32  # side by side, in the simulator


def linear(t_env, start, finish, anneal_steps):
    """A schedule's value after t_env steps: a straight line from start to finish, then flat."""
    return finish + (start - finish) * max(1.0 - t_env / anneal_steps, 0.0)


def crossings(count, added, every):
    """How many multiples of `every` a counter passed when `added` brought it to `count`."""
    return count // every - (count - added) // every


class Players:
    """The agents of E running episodes, with what each episode carries along: hidden (E * N, H),
    last_actions (E, N) with -1 = none yet, and its return and steps so far, (E,) each."""

    def __init__(self, agent, env):
        E, N = env.n_envs, env.n_agents
        self.agent, self.env = agent, env
        self.hidden = agent.initial_hidden(E * N)
        self.last_actions = torch.full((E, N), -1, device=self.hidden.device)
        self.returns, self.steps = np.zeros(E), np.zeros(E, np.int64)

    @torch.inference_mode()
    def act(self, epsilon=0.0, generator=None):
        """One action for every agent, all in one forward pass -> (E, N) int64."""
        device = self.hidden.device
        obs = torch.from_numpy(self.env.obs).to(device)
        avail_actions = torch.from_numpy(self.env.avail_actions).to(device)
        inputs = build_inputs(obs, self.last_actions, self.env.n_actions)
        inputs = inputs.flatten(0, 1).unsqueeze(0)  # (E, N, I) -> (1, E * N, I)
        agent_qs, self.hidden = self.agent(inputs, self.hidden)
        agent_qs = agent_qs.view_as(avail_actions)  # (1, E * N, A) -> (E, N, A)
        self.last_actions = epsilon_greedy(agent_qs, avail_actions, epsilon, generator)
        return self.last_actions.cpu().numpy()

    def after(self, step):
        """Account for one step. Returns the episodes that ended properly and those that are over
        anyhow, (E,) bool each: a game that died gave no result."""
        self.returns += step.reward
        self.steps += 1
        over = step.terminated | step.truncated | step.aborted
        return over & ~step.aborted, over

    def begin(self, over):
        """New episodes in the environments `over` (E,) bool: nothing is remembered there."""
        if not over.any():
            return
        self.env.reset(over)
        mask = torch.from_numpy(over).to(self.hidden.device).unsqueeze(1)  # (E, 1)
        rows = mask.expand_as(self.last_actions).reshape(-1, 1)  # (E, N) -> (E * N, 1)
        self.hidden = self.hidden.masked_fill(rows, 0)
        self.last_actions = self.last_actions.masked_fill(mask, -1)
        self.returns[over] = self.steps[over] = 0

    def state_dict(self):
        names = ("hidden", "last_actions", "returns", "steps")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state):
        device = self.hidden.device
        self.hidden = state["hidden"].to(device)
        self.last_actions = state["last_actions"].to(device)
        self.returns, self.steps = state["returns"].numpy(), state["steps"].numpy()


def play_episodes(agent, env, episodes, stop=None):
    """Greedy test episodes. Every environment plays a share of them that is fixed beforehand: the
    first ones to finish, of many more, would be the short ones. None if `stop` came meanwhile."""
    E = env.n_envs
    share = episodes // E + (np.arange(E) < episodes % E)  # (E,) still to play
    players = Players(agent, env)
    env.reset()
    returns, won, steps, aborted = 0.0, 0, 0, 0
    while share.any():
        if stop and stop.signal:
            return None
        step = env.step(players.act())
        ended, over = players.after(step)
        counted = ended & (share > 0)
        returns += players.returns[counted].sum()
        steps += players.steps[counted].sum()
        won += (counted & step.battle_won).sum()
        aborted += step.aborted.sum()
        share = share - counted
        players.begin(over)
    return {
        "test_return": float(returns / episodes),
        "test_win_rate": float(won / episodes),
        "test_episode_length": float(steps / episodes),
        "aborted_episodes": int(aborted),
    }


def make_learner(args, env, device):
    N, A = env.n_agents, env.n_actions
    agent = RNNAgent(env.obs_dim + A + N, A, args.hidden_dim).to(device)
    widths = args.mixing_embed_dim, args.hypernet_layers, args.hypernet_embed
    mixer = None if args.mixer == "iql" else Mixer(args.mixer, N, env.state_dim, *widths).to(device)
    return QLearner(
        agent,
        mixer,
        gamma=args.gamma,
        td_lambda=args.td_lambda,
        optimiser=args.optimiser,
        lr=args.lr,
        grad_norm_clip=args.grad_norm_clip,
        double_q=not args.no_double_q,
        bootstrap_time_limit=args.bootstrap_time_limit,
        threads=args.threads if device == "cpu" else 1,
    )


def faster_device(args, env):
    """Where a gradient step on episodes of half the time limit is done sooner: "cpu" or "cuda". The
    networks are so small that it is not always the GPU."""
    T, B, N, A = math.ceil(env.episode_limit / 2), args.batch_size, env.n_agents, env.n_actions
    false = torch.zeros(T, B, dtype=torch.bool)
    batch = Batch(
        obs=torch.rand(T + 1, B, N, env.obs_dim),
        state=torch.rand(T + 1, B, env.state_dim),
        avail_actions=torch.ones(T + 1, B, N, A, dtype=torch.bool),
        actions=torch.zeros(T, B, N, dtype=torch.int64),
        reward=torch.rand(T, B),
        terminated=false,
        truncated=false,
        filled=~false,
    )
    seconds = {}
    for device in ("cpu", "cuda"):
        learner = make_learner(args, env, device)
        for _ in range(4):  # the first ones are slow; the last one counts
            begun = time.perf_counter()
            float(learner.update(batch.to(device))["loss"])  # reading it waits for the device
            seconds[device] = time.perf_counter() - begun
    took = ", ".join(f"{value:.3f} s on {device}" for device, value in seconds.items())
    print(f"--device auto: a gradient step takes {took}")
    return min(seconds, key=seconds.get)


def build(args):
    """All that the future of a run depends on."""
    torch.set_num_threads(1)  # the learner's threads share its batches out: see QLearner
    seed = SEEDS_PER_RUN * args.seed
    env = make_env(args.env, args.map, args.n_envs, seed, sc2_timeout=args.sc2_timeout)
    if args.device == "auto":
        args.device = faster_device(args, env)
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    learner = make_learner(args, env, args.device)
    test_env = env
    if hasattr(env, "state_dict"):  # else StarCraft II: games are too large to open more for tests
        n_envs = min(args.test_episodes, TEST_BATTLES)
        test_env = make_env(env.name, args.map, n_envs, seed + TEST_SEEDS)
    sizes = env.n_agents, env.n_actions, env.obs_dim, env.state_dim
    return SimpleNamespace(
        env=env,
        test_env=test_env,
        learner=learner,
        players=Players(learner.agent, env),
        buffer=ReplayBuffer(args.buffer_size, env.n_envs, env.episode_limit, *sizes),
        explore=torch.Generator(device).manual_seed(args.seed),
        sampler=np.random.default_rng(args.seed),
        progress=Progress(),
    )


def prepare(args, config):
    """A run, new or resumed, its directory and its buffer files. What a user can get wrong is
    checked, and raised as ValueError or OSError, before the first file is written."""
    run = build(args)
    env, folder = run.env, args.resume or args.run_dir
    game = "two_step" if env.name == "two_step" else args.map
    if folder is None:
        what = [env.name, game, args.mixer, f"s{args.seed}", time.strftime("%Y%m%d-%H%M%S")]
        folder = args.runs / "_".join(dict.fromkeys(what))
    files = BufferFiles(folder, run.buffer)
    flags = {name: value for name, value in vars(args).items() if name not in NOT_KEPT}
    flags |= {"n_envs": env.n_envs}
    if args.resume:
        if not killed_at_once(folder):  # else it begins again
            state, path = load_checkpoint(folder)
            restore(run, state, files)
            path.replace(folder / "checkpoint.pt")  # a damaged one must not become the one before
        if run.progress.is_finished(args.steps):
            raise ValueError(f"{folder} has all its {args.steps} steps: prolong it by --steps")
        write_config(folder, config | {"flags": flags})
    else:
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise ValueError(f"{folder} exists already: choose another --run-dir or --resume it")
        folder.mkdir(parents=True, exist_ok=True)
        write_config(folder, describe(flags, env, game, run.buffer))
    write_metrics(folder, run.progress.rows)
    print(
        f"{args.mixer} on {game}, played by {env.name} ({env.version}): {env.n_envs} side by side,"
        f" {env.n_agents} agents, {env.n_actions} actions, on {args.device}\n{run.buffer}\n"
        f"run directory: {folder}, from t_env {run.progress.t_env}",
        flush=True,
    )
    return run, folder, files


def train(args, run, folder, files):
    """The loop. Returns the exit status: 0, 1 if something broke, 128 + signal if stopped."""
    env, test_env, learner, buffer = run.env, run.test_env, run.learner, run.buffer
    players, p = run.players, run.progress
    agent, device, everywhere = players.agent, players.hidden.device, np.ones(env.n_envs, bool)
    room = min(AUTO_BUFFER_BYTES, shutil.disk_usage(folder).free + files.size())
    small_enough = args.save_buffer == "auto" and buffer.nbytes <= room
    board, stop = TensorBoard(folder), Stop()
    # A bar where somebody watches (terminal, notebook); a log file gets one line per test.
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    bar = tqdm(
        total=args.steps, initial=p.t_env, unit=" steps", unit_scale=True, disable=not watched
    )
    begun = time.perf_counter() - p.wall_time
    lap, lap_t_env = time.perf_counter(), p.t_env  # where the last test left off

    def save():
        p.wall_time = time.perf_counter() - begun
        keep = args.save_buffer == "yes" or (small_enough and not p.is_finished(args.steps))
        save_checkpoint(folder, state_of(run, files.save(p.episodes) if keep else None))
        files.clean() if keep else files.delete()

    try:
        while True:
            epsilon = linear(
                p.t_env, args.epsilon_start, args.epsilon_finish, args.epsilon_anneal_steps
            )

            # Test: greedy episodes, then a row of metrics.csv and a checkpoint.
            if p.test_is_due(args.test_interval, args.steps):
                speed = (p.t_env - lap_t_env) / (time.perf_counter() - lap) if p.rows else None
                if test_env is env:  # its running episodes make way
                    buffer.drop(everywhere)
                else:
                    before = test_env.state_dict()
                test = play_episodes(agent, test_env, args.test_episodes, stop)
                if test_env is env:
                    players.begin(everywhere)
                elif test is None:  # stopped in the middle: after --resume it begins again
                    test_env.load_state_dict(before)
                if test is None:
                    break
                p.aborted_episodes += test.pop("aborted_episodes")
                p.wall_time = time.perf_counter() - begun
                p.add_row(test | {"epsilon": epsilon, "env_steps_per_s": speed})
                write_metrics(folder, p.rows)
                save()
                board.log(p.rows[-1])
                say(report(p.rows, args.steps))
                bar.set_postfix_str(f"test win {test['test_win_rate']:.3f}")
                lap, lap_t_env = time.perf_counter(), p.t_env
            if p.t_env >= args.steps or stop.signal:
                break

            # Act: one step in all E environments. They overwrite their arrays, hence the copies.
            seen = env.obs.copy(), env.state.copy(), env.avail_actions.copy()
            actions = players.act(epsilon, run.explore)
            step = env.step(actions)
            p.t_env += env.n_envs - int(step.aborted.sum())
            bar.update(p.t_env - bar.n)

            # Store it; close the episodes that ended, forget those that broke, begin new ones.
            buffer.add(*seen, actions, step.reward, step.terminated, step.truncated)
            ended, over = players.after(step)
            n_ended = int(ended.sum())
            buffer.drop(step.aborted)
            buffer.close(ended, env.obs, env.state, env.avail_actions)
            p.aborted_episodes += int(step.aborted.sum())
            p.episodes += n_ended
            p.add(
                episodes=n_ended,
                train_return=float(players.returns[ended].sum()),
                train_win_rate=int(step.battle_won[ended].sum()),
            )
            players.begin(over)

            # Learn: as often as episodes end, however many run side by side.
            learner.lr = linear(p.t_env, args.lr, args.lr_finish, args.steps)
            for _ in range(crossings(p.episodes, n_ended, args.train_interval)):
                if buffer.can_sample(args.batch_size):
                    batch = buffer.sample(args.batch_size, run.sampler).to(device)
                    names, values = zip(*learner.update(batch).items(), strict=True)
                    stats = dict(zip(names, torch.stack(values).tolist(), strict=True))
                    if not all(map(math.isfinite, stats.values())):
                        raise FloatingPointError(", ".join(f"{k} {v:g}" for k, v in stats.items()))
                    p.updates += 1
                    p.add(updates=1, **stats)
            if crossings(p.episodes, n_ended, args.target_update_interval):
                learner.sync_target()

        if not p.is_finished(args.steps):
            save()
            say(f"Stopped at t_env {p.t_env}. Go on with: python train.py --resume {folder}")
            return 128 + stop.signal
        wins = [row["test_win_rate"] for row in p.rows]
        say(
            f"Done: {p.t_env} steps in {p.wall_time:.0f} s. Test win rate {wins[-1]:.3f} at the"
            f" end, {max(wins):.3f} at best.\nAll is in {folder}; curves: python plot.py {folder}"
        )
        return 0
    except FloatingPointError as error:
        complaint = f"not finite at t_env {p.t_env}: {error}; --resume {folder} with a lower --lr"
    except GameUnavailable as error:
        complaint = f"{error}; go on with --resume {folder}"
        with contextlib.suppress(OSError):
            save()
    except OSError as error:
        complaint = f"cannot write {folder}: {error}; mend that and --resume {folder}"
    finally:
        bar.close()
        stop.undo()
        board.close()
        env.close()
    print(f"train.py: error: {complaint} (the last good checkpoint is kept)", file=sys.stderr)
    return 1


def evaluate(args, config):
    """Greedy episodes with the network of an earlier run, in its environment or another one."""
    state, _ = load_checkpoint(args.evaluate)
    n_envs = args.n_envs and min(args.n_envs, args.test_episodes)
    seed = SEEDS_PER_RUN * args.seed + EVALUATION_SEEDS
    env = make_env(args.env, args.map, n_envs, seed, sc2_timeout=args.sc2_timeout)
    N, A = env.n_agents, env.n_actions
    agent = RNNAgent(env.obs_dim + A + N, A, args.hidden_dim).to(args.device)
    load_weights(agent, state["learner"]["agent"])
    if config["env"]["name"] != env.name:
        print(f"Trained on {config['env']['name']}, played on {env.name} ({env.version}).")
    if args.save_replay and not hasattr(env, "save_replay"):
        raise ValueError(f"--save-replay: {env.name} has no replay files, only --env sc2 has")
    result = play_episodes(agent, env, args.test_episodes)
    if args.save_replay:
        for path in env.save_replay(args.evaluate / "replays"):
            print(f"replay: {path}")
    env.close()
    print(
        f"test_win_rate={result['test_win_rate']:.3f} test_return={result['test_return']:.1f}"
        f" episodes={args.test_episodes}"
    )


def main(argv=None):
    args, parser, config = parse_args(argv)
    try:
        if args.evaluate:
            evaluate(args, config)
            return 0
        prepared = prepare(args, config)
    except (ValueError, GameUnavailable) as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{error}; mend that, or choose another --runs or --run-dir")
    return train(args, *prepared)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
