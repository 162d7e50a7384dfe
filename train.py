"""Train QMIX (https://arxiv.org/abs/1803.11485), its ablations, VDN and IQL; resume, evaluate.

    python train.py                                       # QMIX on 2s3z
    python train.py --map 3m --mixer vdn --seed 2         # --help explains all flags
    python train.py --resume runs/sim_2s3z_qmix_s1_...    # goes on where that run stopped
    python train.py --evaluate runs/sim_2s3z_qmix_s1_... --test-episodes 256
    python -m extras.plot runs/*                          # learning curves

Every run leaves a directory behind; extras/files.py says what is in it.

Shapes: E environments, N agents, A actions.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from agent import Players, RNNAgent, input_dim
from buffer import ReplayBuffer
from envs import ENVS, make_env
from extras.device import choose_device
from extras.evaluate import evaluate, init_from
from extras.files import killed_at_once
from extras.flags import Parser, flags_of_the_run, named_value, number, split_env
from extras.games import pettingzoo
from extras.gru import GRU
from extras.run import Run
from extras.threads import set_threads, share_out
from learner import OPTIMISERS, QLearner
from mixer import MIXERS
from starcraft.machine import available_memory, cores

# fmt: off
# The paper's values, and PyMARL's where it gives none: defaults with --paper. Two things stay
# PyMARL's: hypernetworks of two layers (for the paper's add --hypernet-layers 1) and double
# Q-learning (for equation 6 as it is printed add --no-double-q).
PAPER = {"n_envs": 1, "steps": 2_000_000, "batch_size": 32, "buffer_size": 5000,
         "train_interval": 1, "target_update_interval": 200, "optimiser": "rmsprop", "lr": 5e-4,
         "lr_finish": 5e-4, "td_lambda": 0.0, "epsilon_anneal_steps": 50_000,
         "average_rate": 1.0}
# fmt: on
# Environment i of a run is seeded 10000 * seed + i; those of its tests and of --evaluate lie
# further on. So no two share a seed, not even in runs with neighbouring seeds.
SEEDS_PER_RUN, TEST_SEEDS, EVALUATION_SEEDS = 10_000, 4_000, 8_000
TEST_BATTLES = 32  # side by side
ENVS["pettingzoo"] = pettingzoo  # --env pettingzoo:MODULE:FACTORY
whole, real = partial(number, int), partial(number, float)  # types of flags, given their range
MEMORY_SHARE = 0.75  # of the free memory may be replay; learner and everything else need some too


def parse_args(argv=None):
    """The flags, and the parser. What does not fit ends the program with one line and status 2."""
    p = Parser(prog="train.py", description="Train QMIX or an ablation; evaluate and resume runs.")
    count, width, share, rate = whole(1, 10**9), whole(1, 8192), real(0, 1), real(0, 1e3)

    def flag(name, kind, default, text, **more):
        p.add_argument(name, type=kind, default=default, help=text, **more)

    # fmt: off
    flag("--map", str, "2s3z", "SMAC map: 3m, 8m, 2s3z, 3s5z, MMM, ...")
    flag("--env", str, "auto", f"{', '.join(ENVS)}; auto: sc2 where it is installed, else sim")
    flag("--env-args", named_value, [], "of the environment: NAME=VALUE", nargs="+", metavar="ARG")
    flag("--mixer", str, "qmix", "see mixer.py; iql is none at all", choices=MIXERS)
    flag("--steps", count, 600_000, "environment steps to train for, of all battles together")
    flag("--seed", whole(0, 99_999), 1, "of weights, exploration, sampling and battles")
    p.add_argument("--paper", action="store_true", help="defaults of the paper and PyMARL; slower")
    flag("--n-envs", whole(1, 1000), None, "battles side by side (32; sc2: as cores and RAM allow)")
    flag("--device", str, "auto", "auto: the faster one", choices=("auto", "cpu", "cuda"))
    flag("--threads", whole(1, 1024), min(cores(), 4), "CPU threads that share each gradient step")
    flag("--batch-size", count, 16, "episodes per gradient step")
    flag("--buffer-size", count, 500, "episodes kept for replay")
    flag("--train-interval", count, 2, "finished episodes per gradient step, whatever --n-envs is")
    flag("--lr", rate, 2e-3, "learning rate at step 0")
    flag("--lr-finish", rate, 0.0, "learning rate at --steps; a straight line in between")
    flag("--optimiser", str, "adam", "see learner.py", choices=OPTIMISERS)
    flag("--gamma", share, 0.99, "discount per environment step")
    flag("--td-lambda", share, 0.8, "of TD(lambda) targets; 0: the paper's one-step targets")
    flag("--grad-norm-clip", real(1e-9, 1e9), 10.0, "largest norm of the whole gradient")
    flag("--target-update-interval", count, 8, "finished episodes per copy to the target network")
    p.add_argument("--no-double-q", action="store_true", help="target network picks next actions")
    p.add_argument("--bootstrap-time-limit", action="store_true", help="targets go on after it")
    flag("--epsilon-start", share, 1.0, "probability of a random action, at step 0")
    flag("--epsilon-finish", share, 0.05, "probability of a random action, in the end")
    flag("--epsilon-anneal-steps", count, 25_000, "steps from the one to the other")
    flag("--hidden-dim", width, 64, "units of the agents' GRU")
    flag("--mixing-embed-dim", width, 32, "units of the mixing network's hidden layer")
    flag("--hypernet-layers", whole(1, 2), 2, "of what makes mixing weights; paper 1, PyMARL 2")
    flag("--hypernet-embed", width, 64, "units between the two layers of a hypernetwork")
    flag("--average-rate", real(1e-6, 1), 0.005, "newest weights' share in the average for tests")
    flag("--test-interval", count, 10_000, "environment steps from one test to the next")
    flag("--test-episodes", whole(1, 10_000), 32, "greedy episodes in a test or --evaluate")
    flag("--runs", Path, Path("runs"), "where run directories are made", metavar="DIR")
    flag("--run-dir", Path, None, "exactly this one, not a named one in --runs", metavar="DIR")
    flag("--save-buffer", str, "auto", "replay on disk too, for an exact --resume; auto: while the"
         " run lasts, up to 4 GB", choices=("auto", "yes", "no"))
    flag("--resume", Path, None, "go on with this run; more --steps prolong it", metavar="DIR")
    flag("--evaluate", Path, None, "play --test-episodes with this run's network", metavar="DIR")
    p.add_argument("--best", action="store_true", help="with --evaluate: that of the best test")
    p.add_argument("--json", action="store_true", help="with --evaluate: every episode, as JSON")
    p.add_argument("--save-replay", action="store_true", help="with --evaluate on sc2: .SC2Replay")
    flag("--init-from", str, None, "begin with the weights of this run", metavar="DIR")
    # fmt: on
    args = p.parse_args(argv)
    if args.paper:
        p.set_defaults(**PAPER)
        args = p.parse_args(argv)
    args = split_env(args)
    if args.resume or args.evaluate:
        args = flags_of_the_run(p, args, argv)
    if (args.save_replay or args.best or args.json) and not args.evaluate:
        p.error("--save-replay, --best and --json need --evaluate RUN_DIR")
    if args.batch_size > args.buffer_size:
        p.error(f"--batch-size {args.batch_size} is more than --buffer-size {args.buffer_size}")
    return args, p


def linear(t_env, start, finish, anneal_steps):
    """A schedule's value after t_env steps: a straight line from start to finish, then flat."""
    return finish + (start - finish) * max(1.0 - t_env / anneal_steps, 0.0)


def crossings(count, added, every):
    """How many multiples of `every` a counter passed when `added` brought it to `count`."""
    return count // every - (count - added) // every


def make_agent(args, env):
    """An untrained agent for env, on the CPU."""
    n_inputs = input_dim(env.obs_dim, env.n_actions, env.n_agents)
    return RNNAgent(n_inputs, env.n_actions, args.hidden_dim, gru=GRU)


def make_learner(args, env, device):
    """A QLearner with weights drawn from --seed. On the CPU, --threads share its loss."""
    torch.manual_seed(args.seed)
    agent = make_agent(args, env).to(device)
    widths = args.mixing_embed_dim, args.hypernet_layers, args.hypernet_embed
    mixer = MIXERS[args.mixer](env.n_agents, env.state_dim, *widths)
    learner = QLearner(
        agent,
        mixer and mixer.to(device),
        gamma=args.gamma,
        td_lambda=args.td_lambda,
        optimiser=args.optimiser,
        lr=args.lr,
        grad_norm_clip=args.grad_norm_clip,
        double_q=not args.no_double_q,
        bootstrap_time_limit=args.bootstrap_time_limit,
        average_rate=args.average_rate,
    )
    if device == "cpu":
        share_out(learner, args.threads)
    return learner


def play_episodes(agent, env, episodes):
    """Greedy test episodes. Returns (environment, return, won, length) of each, and how many others
    were aborted.

    Every environment plays a share of them that is fixed beforehand: the first ones to finish, of
    many more, would be the short ones.
    """
    E = env.n_envs
    share = episodes // E + (np.arange(E) < episodes % E)  # (E,) still to play
    players = Players(agent, E, env.n_agents, env.n_actions)
    played, aborted = [], 0
    env.reset()
    while share.any():
        step = env.step(players.act(env.obs, env.avail_actions))
        players.count(step.reward)
        over = step.terminated | step.truncated | step.aborted
        counted = over & ~step.aborted & (share > 0)
        results = np.arange(E), players.returns, step.battle_won, players.lengths  # (E,) each
        played += np.stack(results, axis=1)[counted].tolist()  # (E, 4) -> (counted, 4)
        aborted += int(step.aborted.sum())
        share = share - counted
        env.reset(over)
        players.forget(over)
    return played, aborted


def averages(played, aborted):
    """What a test adds to metrics.csv, from what play_episodes returns."""
    names = ("test_return", "test_win_rate", "test_episode_length")
    means = np.mean(played, axis=0)[1:].tolist()
    return dict(zip(names, means, strict=True)) | {"aborted_episodes": aborted}


def main(argv=None):
    """Returns the exit status: 0, 1 if something broke, 128 + signal if stopped."""
    args, parser = parse_args(argv)
    set_threads(args.threads)
    seed, options = SEEDS_PER_RUN * args.seed, dict(args.env_args)
    with parser.refuses():
        if args.evaluate:
            return evaluate(args, seed + EVALUATION_SEEDS, make_agent, play_episodes)

        env = test_env = make_env(args.env, args.map, args.n_envs, seed, **options)
        if not getattr(env, "tests_play_here", False):
            n_envs = min(args.test_episodes, TEST_BATTLES)
            test_env = make_env(env.name, args.map, n_envs, seed + TEST_SEEDS, **options)
        args.device = choose_device(args, env, make_learner)
        learner = make_learner(args, env, args.device)
        if args.init_from is not None and (not args.resume or killed_at_once(args.resume)):
            init_from(args, learner)
        E, N, A = env.n_envs, env.n_agents, env.n_actions
        players = Players(learner.agent, E, N, A, args.seed)
        sizes = E, env.episode_limit, N, A, env.obs_dim, env.state_dim
        buffer = ReplayBuffer(args.buffer_size, *sizes, room=MEMORY_SHARE * available_memory())
        rng = np.random.default_rng(args.seed)
        run = Run(args, env, test_env, learner, buffer, players, rng)

    def epsilon():
        return linear(run.t_env, args.epsilon_start, args.epsilon_finish, args.epsilon_anneal_steps)

    def test():
        result = averages(*play_episodes(learner.average, test_env, args.test_episodes))
        if test_env is env:  # all running episodes had to make way: new ones begin
            buffer.drop(np.ones(E, bool))
            players.forget(np.ones(E, bool))
            env.reset()
        run.record(**result, epsilon=epsilon())

    with run:
        if run.test_is_due():  # before the first step, too
            test()
        while run.goes_on():
            # Act: one step in all E environments.
            buffer.see(env.obs, env.state, env.avail_actions)
            actions = players.act(env.obs, env.avail_actions, epsilon())
            step = env.step(actions)

            # Store: keep the episodes that ended, forget those that broke, begin new ones.
            over = step.terminated | step.truncated | step.aborted
            ended = over & ~step.aborted
            players.count(step.reward)
            buffer.add(actions, step.reward, step.terminated, step.truncated)
            buffer.drop(step.aborted)
            buffer.close(ended, env.obs, env.state, env.avail_actions)
            run.count(step, ended, players.returns)
            env.reset(over)
            players.forget(over)

            # Learn: as often as episodes end, however many run side by side.
            learner.lr = linear(run.t_env, args.lr, args.lr_finish, args.steps)
            for _ in range(crossings(run.episodes, ended.sum(), args.train_interval)):
                if len(buffer) >= args.batch_size:
                    batch = buffer.sample(args.batch_size, rng).to(args.device)
                    run.learned(**learner.update(batch))
            if crossings(run.episodes, ended.sum(), args.target_update_interval):
                learner.sync_target()

            # Test: greedy episodes, a row of metrics.csv, a checkpoint.
            if run.test_is_due():
                test()
    return run.status


if __name__ == "__main__":
    sys.exit(main())
