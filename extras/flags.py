"""What train.py's flags have in common with those of any program, and how they are read again from
an earlier run.

QMIX (https://arxiv.org/abs/1803.11485). Not a script; see the flags with: python train.py --help
"""

import argparse
import ast
import contextlib
import math
import sys

from extras.files import read_config
from starcraft.sc2 import GameUnavailable

# Flags that say what to do now, not what the run is: not kept in config.json.
NOT_KEPT = ("evaluate", "resume", "save_replay", "best", "json", "run_dir", "runs")
# Flags that leave what is learned as it is (threads: but for rounding).
INDIFFERENT = {*NOT_KEPT, "device", "threads", "save_buffer"}
# Flags that may change together with --resume.
MAY_CHANGE = ("steps", "lr", "lr_finish", "device", "threads", "env_args", "save_buffer")
# Flags that tell --evaluate what to play, and where.
TO_PLAY = ("env", "map", "env_args", "n_envs", "seed", "test_episodes", "device", "threads")
# Of --env-args only these: where StarCraft II is played, not what.
WHERE = ("ray", "games", "timeout")


class Parser(argparse.ArgumentParser):
    """No abbreviations; --help shows defaults; an error is one line, without the usage."""

    def __init__(self, **options):
        formatter = argparse.ArgumentDefaultsHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=formatter, **options)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    @contextlib.contextmanager
    def refuses(self):
        """What a user can get wrong ends the program here with one line and status 2."""
        try:
            yield
        except (ValueError, GameUnavailable) as error:
            self.error(str(error))
        except OSError as error:
            self.error(f"{error}; mend that, or choose another place")
        except KeyboardInterrupt:
            self.exit(130)


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


def named_value(text):
    """An argparse type: NAME=VALUE -> (name, value); what Python cannot read is a text."""
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE")
    with contextlib.suppress(ValueError, SyntaxError):
        value = ast.literal_eval(value)
    return name, value


def split_env(args):
    """--env pettingzoo:MODULE:FACTORY is two flags in one: the environment and its map."""
    if args.env.startswith("pettingzoo:"):
        args.env, args.map = args.env.split(":", maxsplit=1)
    return args


def flags_of_the_run(parser, args, argv):
    """args once more, for --resume or --evaluate: the flags in that run's config.json, overruled
    by those given now where that makes sense. Exits with one line if something does not fit."""
    if args.resume and args.evaluate:
        parser.error("--resume and --evaluate cannot be combined: give one")
    if args.run_dir or args.runs != parser.get_default("runs"):
        parser.error("--run-dir and --runs are for new runs: not with --resume or --evaluate")
    folder = args.resume or args.evaluate
    with parser.refuses():
        config = read_config(folder)
    kept = config["flags"] | {"env": config["env"]["name"]}
    if unknown := kept.keys() - vars(args).keys():
        parser.error(
            f"{folder / 'config.json'} has {', '.join(sorted(map(repr, unknown)))}, no flag of this"
            " version: take the version that the file names, or delete it there"
        )
    new = vars(args).keys() - kept.keys() - {*NOT_KEPT}
    if args.resume and new:
        by_default = ", ".join(f"{name} {parser.get_default(name)}" for name in sorted(new))
        print(f"Not in {folder / 'config.json'}, so by default: {by_default}", file=sys.stderr)
    if args.evaluate:  # the network is that run's, the machine is this one
        kept |= {"device": None, "threads": None}
        if args.env not in ("auto", kept["env"]):
            kept |= {"n_envs": None, "env_args": None}
    words = [word for name, value in kept.items() for word in as_words(name, value)]
    argv = sys.argv[1:] if argv is None else list(argv)
    before = parser.parse_args(words)
    now = split_env(parser.parse_args(words + argv))  # the later one wins
    if args.env == "auto":
        now.env = before.env
    of_the_run = dict(before.env_args)
    now.env_args = list((of_the_run | dict(now.env_args)).items())
    for name, value in now.env_args:
        if args.resume and name not in WHERE and (name, value) not in of_the_run.items():
            may = ", ".join(WHERE)
            parser.error(f"--env-args {name} cannot change with --resume, only {may} can")
    mode, changeable = ("--resume", MAY_CHANGE) if args.resume else ("--evaluate", TO_PLAY)
    for name, value in vars(now).items():
        if value != getattr(before, name) and name not in NOT_KEPT + changeable:
            may = ", ".join(f"--{name.replace('_', '-')}" for name in changeable)
            parser.error(f"--{name.replace('_', '-')} cannot change with {mode}, only {may} can")
    return now


def as_words(name, value):
    """A kept flag as it would be typed."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, list):  # of NAME, VALUE
        return [flag, *(f"{key}={x!r}" for key, x in value)] if value else []
    if value is None or value is False:
        return []
    return [flag if value is True else f"{flag}={value}"]
