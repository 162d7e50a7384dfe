"""All flags of train.py, what they may be, and how they combine with those of an earlier run.

QMIX (https://arxiv.org/abs/1803.11485). Not a script; see them with: python train.py --help
"""

import argparse
import math
import sys
from pathlib import Path

import torch
from run import read_config

from envs import ENVS
from mixer import MIXERS

# The values of the original paper, and PyMARL's where it gives none: defaults with --paper.
PAPER = {
    "n_envs": 1,
    "steps": 2_000_000,
    "train_interval": 1,
    "optimiser": "rmsprop",
    "lr": 5e-4,
    "lr_finish": 5e-4,
    "td_lambda": 0.0,
    "target_update_interval": 200,
    "batch_size": 32,
    "buffer_size": 5000,
    "epsilon_anneal_steps": 50_000,
}
CORES = torch.get_num_threads()  # asked before train.py sets it to 1
# Flags that say what to do now, not what the run is: not kept in config.json.
NOT_KEPT = ("evaluate", "resume", "save_replay", "run_dir", "runs")
# Flags that may change together with --resume.
MAY_CHANGE = ("steps", "lr", "lr_finish", "device", "threads", "sc2_timeout", "save_buffer")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        """One line on stderr, without the usage that argparse would print first."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def number(kind, low, high):
    """An argparse type: int or float from low to high (nan is not)."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            noun = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text} is not {noun} from {low} to {high}")
        return value

    return parse


def build_parser():
    about = "Train QMIX or one of its ablations; evaluate and resume runs."
    parser = Parser(prog="train.py", description=about, allow_abbrev=False)

    def flag(name, kind, default, text, choices=None):
        metavar = None if choices else {Path: "DIR", str: "NAME"}.get(kind, "N")
        text += "" if default is None else f" (default: {default})"
        group.add_argument(
            name, type=kind, default=default, help=text, choices=choices, metavar=metavar
        )

    def switch(name, text):
        group.add_argument(name, action="store_true", help=text)

    count, width, fraction = number(int, 1, 10**9), number(int, 1, 8192), number(float, 0, 1)
    # fmt: off
    group = parser.add_argument_group("what to train")
    flag("--map", str, "2s3z", "SMAC map: 3m, 8m, 2s3z, 3s5z, MMM, ...; two_step has none")
    flag("--env", str, "auto",
         "sim: built-in simulator; sc2: StarCraft II; auto: sc2 if installed, else sim", ENVS)
    flag("--mixer", str, "qmix", "see mixer.py; iql is none at all", [*MIXERS, "iql"])
    flag("--steps", count, 400_000, "environment steps to train for, those of all battles together")
    flag("--seed", number(int, 0, 99_999), 1, "of weights, exploration, sampling and battles")
    switch("--paper", "defaults of the paper, and of PyMARL where it gives none; slower")

    group = parser.add_argument_group("machine")
    flag("--n-envs", number(int, 1, 1000), None,
         "battles side by side (default: 32; for sc2 what cores and memory allow)")
    flag("--device", str, "auto", "of the networks; auto: where a gradient step is done sooner",
         ["auto", "cpu", "cuda"])
    flag("--threads", number(int, 1, 1024), None,
         "CPU threads that share each gradient step (default: one per core, 4 at most)")
    flag("--sc2-timeout", number(float, 1, 1e5), 60.0,
         "seconds without an answer after which a game is restarted")

    group = parser.add_argument_group("learning")
    flag("--batch-size", count, 64, "episodes per gradient step")
    flag("--buffer-size", count, 2000, "episodes kept for replay")
    flag("--train-interval", count, 2, "finished episodes per gradient step, whatever --n-envs is")
    flag("--lr", number(float, 0, 1e3), 1e-3, "learning rate at step 0")
    flag("--lr-finish", number(float, 0, 1e3), 0.0, "learning rate at --steps; a line in between")
    flag("--optimiser", str, "adam", "rmsprop: alpha 0.99, eps 1e-5", ["adam", "rmsprop"])
    flag("--gamma", fraction, 0.99, "discount per environment step")
    flag("--td-lambda", fraction, 0.8, "of TD(lambda) targets; 0: the paper's one-step targets")
    flag("--grad-norm-clip", number(float, 1e-9, 1e9), 10.0, "largest norm of the whole gradient")
    flag("--target-update-interval", count, 48,
         "finished episodes from one copy into the target network to the next")
    switch("--no-double-q", "let the target network choose the action that it values")
    switch("--bootstrap-time-limit",
           "value what would come after the time limit; SMAC, and the default, treat it as the end")

    group = parser.add_argument_group("exploration", "epsilon falls in a straight line, then stays")
    flag("--epsilon-start", fraction, 1.0, "probability of a random action, at step 0")
    flag("--epsilon-finish", fraction, 0.05, "probability of a random action, in the end")
    flag("--epsilon-anneal-steps", count, 50_000, "environment steps from start to finish")

    group = parser.add_argument_group("networks")
    flag("--hidden-dim", width, 64, "units of the agents' GRU; multiples of 8 are faster on a CPU")
    flag("--mixing-embed-dim", width, 32, "units of the mixing network's hidden layer")
    flag("--hypernet-layers", number(int, 1, 2), 2, "of each hypernetwork; paper 1, PyMARL 2")
    flag("--hypernet-embed", width, 64, "units between the two layers of a hypernetwork")

    group = parser.add_argument_group("tests and files")
    flag("--test-interval", count, 10_000, "environment steps from one test to the next")
    flag("--test-episodes", number(int, 1, 10_000), 32, "greedy episodes in a test or --evaluate")
    flag("--runs", Path, Path("runs"), "where run directories are made")
    flag("--run-dir", Path, None, "the run directory itself, instead of one with a telling name")
    flag("--save-buffer", str, "auto",
         "keep replay on disk too, for an exact --resume; auto: until the run is done, if a full"
         " buffer has at most 4 GB and the disk has room", ["auto", "yes", "no"])
    flag("--resume", Path, None, "go on with this run directory, with its flags; a larger --steps"
         " prolongs a finished run")
    flag("--evaluate", Path, None, "play --test-episodes with the network of this run directory")
    switch("--save-replay", "with --evaluate on sc2: write .SC2Replay files")
    # fmt: on
    return parser


def parse_args(argv=None):
    """The flags, the parser (for its error method), and config.json of the run directory they go on
    with (None for a new run). Exits with status 2 and one line if something does not fit."""
    parser = build_parser()
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args(argv)
    if args.paper:
        parser.set_defaults(**PAPER)
        args = parser.parse_args(argv)
    config = None
    if args.resume and args.evaluate:
        parser.error("--resume and --evaluate cannot be combined: give one")
    if args.resume or args.evaluate:
        try:
            config = read_config(args.resume or args.evaluate)
        except (ValueError, OSError) as error:
            parser.error(str(error))
        args = add_kept_flags(parser, args, argv, config)
    if args.resume and args.run_dir:
        parser.error("--resume goes on in its own directory: leave out --run-dir")
    if args.save_replay and not args.evaluate:
        parser.error("--save-replay needs --evaluate RUN_DIR")
    if args.batch_size > args.buffer_size:
        parser.error(
            f"--batch-size {args.batch_size} is more than --buffer-size {args.buffer_size}"
        )
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here, use --device cpu")
    if args.device == "auto" and (args.evaluate or not torch.cuda.is_available()):
        args.device = "cpu"  # with both, train.py measures
    args.threads = args.threads or min(CORES, 4)
    return args, parser, config


def add_kept_flags(parser, given, argv, config):
    """The flags in config.json, overruled by those given now where that makes sense."""
    kept = config["flags"] | {"env": config["env"]["name"]}
    if given.evaluate:  # the network is that run's, the machine is this one
        kept |= {"device": None, "threads": None}
        if given.env not in ("auto", kept["env"]):
            kept["n_envs"] = None
    kept = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in kept.items()
        if value is not None and value is not False
    ]
    before, args = parser.parse_args(kept), parser.parse_args(kept + argv)  # the later one wins
    if given.env == "auto":
        args.env = before.env
    for name, value in vars(args).items():
        changed = value != getattr(before, name) and name not in NOT_KEPT + MAY_CHANGE
        if given.resume and changed:
            may = ", ".join(f"--{name.replace('_', '-')}" for name in MAY_CHANGE)
            parser.error(f"--{name.replace('_', '-')} cannot change with --resume, only {may} can")
    return args
