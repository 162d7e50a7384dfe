"""One training run from outside: its directory, checkpoints, log, progress bar, and how it stops.

QMIX (https://arxiv.org/abs/1803.11485). Not a script: train.py says `with run:`, and files.py what
lies in the directory.
"""

import contextlib
import math
import os
import shutil
import signal
import sys
import threading
import time
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

try:
    import fcntl
except ImportError:  # Windows: there, runs are not locked
    fcntl = None

from extras.check import PROGRESS, check, check_optimiser, check_running, types_of
from extras.files import (
    BufferFiles,
    describe,
    game_of,
    killed_at_once,
    load_checkpoint,
    load_weights,
    read_config,
    save_checkpoint,
    to_arrays,
    to_tensors,
    with_this_code,
    write_atomic,
    write_config,
    write_metrics,
)
from extras.flags import NOT_KEPT
from starcraft.sc2 import GameUnavailable

AUTO_BUFFER_BYTES = 4e9  # --save-buffer auto: a full buffer may have so many, if the disk has
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # as far as the system has them


class CannotWrite(OSError):  # noqa: N818
    """The run directory cannot be written to."""


class Run:
    """A context manager round the training loop.

    args: the flags. env: what is really played. The rest is all that the future of a run depends
    on: learner, buffer, players, rng (numpy's, which samples), test_env. With args.resume all of
    it is put into the state of the last checkpoint.

    t_env, episodes, updates, aborted_episodes: since the beginning of the run. status: what
    the program should exit with after the `with` block: 0, 1 if something broke, 128 + signal.

    Raises ValueError or OSError, one line, before the first file is written.
    """

    def __init__(self, args, env, test_env, learner, buffer, players, rng):
        self.args, self.env, self.test_env = args, env, test_env
        self.learner, self.buffer, self.players, self.rng = learner, buffer, players, rng
        self.t_env = self.episodes = self.updates = self.aborted_episodes = 0
        self.wall_time = 0.0  # seconds, earlier sittings included
        self.rows, self.sums = [], {}  # of metrics.csv; name: [sum, count] since the last row
        self.status = self.signal = 0
        flags = {name: value for name, value in vars(args).items() if name not in NOT_KEPT}
        flags |= {"n_envs": env.n_envs}
        batch = args.batch_size * buffer.nbytes / (buffer.capacity + env.n_envs)
        if batch > buffer.room:  # else a run that never learns
            raise ValueError(
                f"--batch-size {args.batch_size}: so many of the longest episodes take"
                f" {batch / 1e6:.0f} MB, more than the {buffer.room / 1e6:.0f} MB that replay may"
                " take here: reduce it"
            )
        self.folder = args.resume or claim(args, env)
        self.lock = Lock(self.folder)
        try:
            if args.run_dir and any(self.folder.iterdir()):
                raise ValueError(
                    f"{self.folder} is not empty: choose another --run-dir or --resume it"
                )
            self.files = BufferFiles(self.folder, buffer)
            if args.resume:
                config = read_config(self.folder) | {"flags": flags}
                self.restore()
                config = with_this_code(config)
            else:
                config = describe(flags, env, buffer)
            write_config(self.folder, config)
            if self.rows:
                write_metrics(self.folder, self.rows)
            room = min(AUTO_BUFFER_BYTES, shutil.disk_usage(self.folder).free + self.files.size())
        except BaseException:
            self.lock.release()
            raise
        self.small_enough = args.save_buffer == "auto" and buffer.nbytes <= room
        self.board = TensorBoard(self.folder)
        version = f" ({env.version})" if hasattr(env, "version") else ""
        limit = "at most" if buffer.nbytes <= buffer.room else "fewer if they take more than"
        say(
            f"{args.mixer} on {game_of(env)}, played by {env.name}{version}: {env.n_envs} side by"
            f" side, {env.n_agents} agents, {env.n_actions} actions, on {args.device}\n"
            f"replay buffer: {buffer.capacity} episodes, {limit}"
            f" {min(buffer.nbytes, buffer.room) / 1e9:.2f} GB\n"
            f"run directory: {self.folder}, from t_env {self.t_env}"
        )

    # --- what the loop uses ---------------------------------------------------------------------

    def goes_on(self) -> bool:
        """False when all steps are done, or a signal has asked to stop."""
        self.bar.update(self.t_env - self.bar.n)
        return self.t_env < self.args.steps and not self.signal

    def log(self, **values) -> None:
        """Numbers (0-dim tensors too) whose mean since the last test becomes a column of the next
        row, and a scalar in TensorBoard. Raises FloatingPointError if one is not finite."""
        tensors = {name: x for name, x in values.items() if torch.is_tensor(x)}
        if tensors:  # all at once: a GPU is waited for once
            numbers = torch.stack([x.double() for x in tensors.values()]).tolist()
            values |= dict(zip(tensors, numbers, strict=True))
        if odd := [f"{k} {v:g}" for k, v in values.items() if not math.isfinite(v)]:
            raise FloatingPointError(", ".join(odd))
        for name, value in values.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = [total + float(value), count + 1]

    def test_is_due(self) -> bool:
        """At step 0, when a multiple of --test-interval has been passed, and at the end."""
        interval, steps = self.args.test_interval, self.args.steps
        last = self.rows[-1]["t_env"] if self.rows else -1
        return self.t_env // interval > last // interval or self.t_env >= steps > last

    def count(self, step, ended, returns) -> None:
        """What a step of all environments adds: steps and, where ended (E,) bool, episodes, whose
        returns (E,) and wins are logged."""
        self.t_env += self.env.n_envs - int(step.aborted.sum())
        self.aborted_episodes += int(step.aborted.sum())
        self.episodes += int(ended.sum())
        for e in np.flatnonzero(ended):
            self.log(train_return=returns[e], train_win_rate=step.battle_won[e])

    def learned(self, **stats) -> None:
        """A gradient step more, and its statistics. Raises ValueError where a name is taken."""
        refuse_taken(stats, {"train_return", "train_win_rate"})
        self.updates += 1
        self.log(**stats)

    def record(self, aborted_episodes: int, **test) -> None:
        """A row of metrics.csv with the results of a test, and a checkpoint."""
        self.aborted_episodes += aborted_episodes
        self.wall_time = time.perf_counter() - self.begun
        names = ("t_env", "episodes", "updates", "aborted_episodes", "wall_time")
        row = {name: getattr(self, name) for name in names} | test
        row["env_steps_per_s"] = None  # since the row before, tests included
        if self.rows:
            seconds = self.wall_time - self.rows[-1]["wall_time"]
            row["env_steps_per_s"] = (self.t_env - self.rows[-1]["t_env"]) / seconds
        means = {name: total / count for name, (total, count) in self.sums.items()}
        refuse_taken(means, row)
        row |= means
        merit = itemgetter("test_win_rate", "test_return")
        best = all(merit(row) >= merit(other) for other in self.rows)
        self.rows.append(row)
        self.sums = {}
        with self.writing():
            write_metrics(self.folder, self.rows)
            if best:
                weights = self.learner.average.state_dict()
                write_atomic(self.folder / "best.pt", lambda file: torch.save(weights, file))
            self.save()
            self.board.log(row)
        say(report(self.rows, self.args.steps))
        self.bar.set_postfix_str(f"test win {row['test_win_rate']:.3f}")

    # --- from the first step to the last --------------------------------------------------------

    def __enter__(self):
        # A bar where somebody watches (terminal, notebook); a log file gets one line per test.
        watched = sys.stderr.isatty() or "ipykernel" in sys.modules
        options = {"unit": " steps", "unit_scale": True, "disable": not watched}
        self.bar = tqdm(total=self.args.steps, initial=self.t_env, **options)
        self.begun = time.perf_counter() - self.wall_time
        self.usual = {}
        if threading.current_thread() is threading.main_thread():  # signal() works nowhere else
            self.usual = hear(self.stop)
        return self

    def stop(self, number, _frame) -> None:
        """The first signal is a request, so that no step is left half done; the second has its
        usual effect."""
        self.signal = number
        self.listen_no_more()

    def listen_no_more(self) -> None:
        for number, handler in self.usual.items():
            signal.signal(number, handler)

    def __exit__(self, _kind, error, _traceback) -> bool:
        """Errors that a user can mend become one line; all others keep their traceback."""
        try:
            if error is None:
                self.finish()
            elif isinstance(error, GameUnavailable):
                self.save()
        except CannotWrite as failure:
            error = failure
        finally:
            self.bar.close()
            self.listen_no_more()
            self.board.close()
            self.env.close()
            self.test_env.close()
            self.lock.release()
        again = f"--resume {self.folder}"
        if isinstance(error, FloatingPointError):
            complaint = (
                f"not finite at t_env {self.t_env}: {error}; if loss or grad_norm is among these,"
                f" {again} with a lower --lr"
            )
        elif isinstance(error, GameUnavailable):
            complaint = f"{error}; go on with {again}"
        elif isinstance(error, CannotWrite):
            complaint = f"{error}; mend that and {again}"
        elif isinstance(error, KeyboardInterrupt):  # the second Ctrl-C
            self.status = 130
            return True
        else:
            return False
        self.status = 1
        print(f"train.py: error: {complaint} (the last good checkpoint is kept)", file=sys.stderr)
        return True

    def finish(self) -> None:
        self.wall_time = time.perf_counter() - self.begun
        if not self.is_finished():
            self.save()
            self.status = 128 + self.signal
            say(f"Stopped at t_env {self.t_env}. Go on: python train.py --resume {self.folder}")
            return
        wins = [row["test_win_rate"] for row in self.rows]
        say(
            f"Done: {self.t_env} steps in {self.wall_time:.0f} s. Test win rate {wins[-1]:.3f} at"
            f" the end, {max(wins):.3f} at best.\nAll is in {self.folder}; curves: python -m"
            f" extras.plot {self.folder}"
        )

    def is_finished(self) -> bool:
        return bool(self.rows) and self.rows[-1]["t_env"] >= self.args.steps

    # --- checkpoints ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self):
        """What fails here is the run directory's fault, and nothing else is."""
        try:
            yield
        except OSError as error:
            raise CannotWrite(f"cannot write {self.folder}: {error}") from None

    def save(self) -> None:
        """Everything that the future of the run depends on, as checkpoint.pt."""
        auto = self.small_enough and not self.is_finished()
        keep = self.args.save_buffer == "yes" or auto
        with self.writing():
            state = {
                "progress": {name: getattr(self, name) for name in PROGRESS},
                "learner": self.learner.state_dict(),
                "players": carried(self.players),
                "explore": self.players.generator.get_state(),
                "sampler": self.rng.bit_generator.state,
                "torch": torch.get_rng_state(),
                "buffer": self.files.save(self.episodes) if keep else None,
            }
            for name, env in (("env", self.env), ("test_env", self.test_env)):
                if hasattr(env, "state_dict"):  # else a game that cannot save a running episode
                    state[name] = env.state_dict()
            save_checkpoint(self.folder, state)
            self.files.clean() if keep else self.files.delete()

    def restore(self) -> None:
        """Go on from the newest whole checkpoint; a run killed before its first begins again."""
        new, path = self.folder / "checkpoint.new.pt", self.folder / "checkpoint.pt"
        if new.exists() and not path.exists():  # killed between the two renames of save_checkpoint
            new.replace(path)
        if killed_at_once(self.folder):
            return
        state, path, warning = load_checkpoint(self.folder)
        self.check(state, str(path))
        now = self.learner.optimiser.state_dict()["param_groups"]  # learning rate and the like
        state["learner"]["optimiser"]["param_groups"] = now
        load_weights(self.learner, state["learner"])
        for name in PROGRESS:
            setattr(self, name, state["progress"][name])
        if self.is_finished():
            raise ValueError(f"{self.folder} has {self.t_env} steps already: give more --steps")
        generator = self.players.generator
        try:
            if state["explore"].shape == generator.get_state().shape:  # else another device
                generator.set_state(state["explore"])
            self.rng.bit_generator.state = state["sampler"]
            torch.set_rng_state(state["torch"])
        except (ValueError, TypeError, OverflowError, RuntimeError) as error:
            raise ValueError(f"{path}: a random generator's state is wrong: {error}") from None
        try:
            self.files.load(state["buffer"])
            whole = "env" in state
        except ValueError as error:
            warning += f"\nThe replay buffer starts empty, this is no exact continuation: {error}"
            whole = False
        for name, env in (("env", self.env), ("test_env", self.test_env)):
            if name in state:
                env.load_state_dict(to_arrays(state[name]))
        if "env" not in state:
            warning += "\nThis environment begins new episodes: no exact continuation"
        if whole:
            for name, value in state["players"].items():
                like = getattr(self.players, name)
                value = value.to(like.device) if torch.is_tensor(like) else value.numpy()
                setattr(self.players, name, value)
        else:  # the first halves of the running episodes are lost
            self.buffer.drop(np.ones(self.env.n_envs, bool))
            self.env.reset()
        path.replace(self.folder / "checkpoint.pt")  # a damaged one must not be the one before
        if warning:
            say(warning.strip())

    def check(self, state: dict, name: str) -> None:
        """Raises ValueError, one line, where this is not a checkpoint that this run would write."""
        games = {"env": self.env, "test_env": self.test_env}
        games = {
            k: types_of(to_tensors(g.state_dict()))
            for k, g in games.items()
            if hasattr(g, "state_dict")
        }
        parts = types_of(self.learner.state_dict())
        like = {
            "format": int,
            "progress": PROGRESS,
            "learner": parts | {"optimiser": dict},
            "players": carried(self.players),
            "explore": lambda x: isinstance(x, torch.Tensor) and x.dtype == torch.uint8,
            "sampler": types_of(self.rng.bit_generator.state),
            "torch": torch.get_rng_state(),
            "buffer": lambda x: x is None or isinstance(x, dict),
        }
        check(state, like | games, name)
        check_optimiser(state["learner"]["optimiser"], self.learner.optimiser, f"{name}, optimiser")
        actions = state["players"]["last_actions"]
        if actions.min() < -1 or actions.max() >= self.env.n_actions:
            raise ValueError(f"{name}, players, last_actions are wrong")
        if state["buffer"] is not None:
            check_running(state["buffer"], self.buffer, f"{name}, buffer")


def refuse_taken(names, columns) -> None:
    """Raises ValueError where a statistic has the name of another column."""
    if taken := {*names} & {*columns}:
        raise ValueError(f"metrics.csv has a column {', '.join(taken)}: rename that statistic")


def carried(players) -> dict:
    """All arrays and tensors of the players, whatever their names."""
    return {k: x for k, x in vars(players).items() if isinstance(x, torch.Tensor | np.ndarray)}


def hear(handler) -> dict:
    """SIGNALS call `handler` from now on. Returns {number: the handler before}.

    What is ignored stays so, as SIGHUP under nohup, but for SIGINT: shells ignore that one for all
    that they start in the background, where others may send it on purpose.
    """
    usual = {}
    for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            usual[number] = signal.signal(number, handler)
    return usual


# --- the directory ------------------------------------------------------------------------------


def claim(args, env) -> Path:
    """A new run directory: --run-dir, or one under a telling name that no other run can have."""
    if args.run_dir:
        args.run_dir.mkdir(parents=True, exist_ok=True)
        return args.run_dir
    what = [env.name, game_of(env), args.mixer, f"s{args.seed}", time.strftime("%Y%m%d-%H%M%S")]
    name = "_".join(dict.fromkeys(what)).replace("/", "-")
    args.runs.mkdir(parents=True, exist_ok=True)
    for number in range(1, 10_000):
        folder = args.runs / (name if number == 1 else f"{name}_{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise ValueError(f"{args.runs} has ten thousand runs named {name}: choose another --runs")


class Lock:
    """Says that this process trains in the folder. The system releases it when the process ends,
    however it ends. Raises ValueError where another process has it."""

    def __init__(self, folder: Path):
        self.folder = None
        if fcntl is None:
            return
        self.folder = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self.folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise ValueError(f"another process trains in {folder}: wait, or stop it") from None
        except OSError:  # a file system without locks
            pass

    def release(self) -> None:
        if self.folder is not None:
            os.close(self.folder)
            self.folder = None


# --- what is shown while it runs ----------------------------------------------------------------


def say(text: str) -> None:
    """Print without tearing the progress bar, and at once, for those who follow a log file. What
    stdout cannot show is replaced; a closed stdout ends the talking, not the training."""
    try:
        encoding = sys.stdout.encoding or "utf-8"
        tqdm.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):  # else Python complains when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class TensorBoard:
    """The rows of metrics.csv as scalars. Imported at the first test, to keep the start quick."""

    def __init__(self, folder: Path):
        self.folder, self.writer = folder, None

    def log(self, row: dict) -> None:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # purge_step hides what an interrupted run had logged after the checkpoint resumed from.
            self.writer = SummaryWriter(str(self.folder), purge_step=row["t_env"])
        for name, value in row.items():
            if value is not None:
                self.writer.add_scalar(name, value, row["t_env"])
        self.writer.flush()

    def close(self) -> None:
        if self.writer:
            with contextlib.suppress(OSError):  # a full disk has been complained about by then
                self.writer.close()


def report(rows: list[dict], steps: int) -> str:
    """One line on the newest row, and another if the test win rate has collapsed: below half of its
    best, where that was at least 0.5, and not so at the test before."""
    row, best = rows[-1], max(row["test_win_rate"] for row in rows)
    t_env, seconds, win = row["t_env"], row["wall_time"], row["test_win_rate"]
    left = seconds / t_env * max(steps - t_env, 0) if t_env else 0.0
    line = (
        f"t_env {t_env:>{len(str(steps))}}/{steps}  test win {win:.3f} (best {best:.3f})"
        f"  return {row['test_return']:5.2f}  {row['env_steps_per_s'] or 0:5.0f} steps/s"
        f"  {seconds:.0f} s, {left:.0f} s left"
    )
    before = rows[-2]["test_win_rate"] if len(rows) > 1 else 0.0
    if best >= 0.5 and win < best / 2 <= before:
        line += f"\nWarning: the test win rate fell to {win:.3f}, its best was {best:.3f}"
    return line
