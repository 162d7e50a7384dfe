"""Many runs of train.py at once, on the cores of this machine or of a cluster (https://ray.io).

    pip install -r extras/requirements-sweep.txt
    python -m extras.sweep --maps 3m 2s3z --mixers qmix vdn --seeds 1-5 --steps 200000
    python -m extras.sweep ... --address auto       # on a whole Ray cluster: see README.md

Every flag of train.py can be added and holds for all runs. They lie in --out, one directory for
each map, mixer and seed, like any other run: plot, watch and resume them as usual. The same command
again goes on: what is finished is skipped, what was begun is resumed, on whatever machine is free.

QMIX: https://arxiv.org/abs/1803.11485
"""

import argparse
import contextlib
import csv
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

import train
from envs import PARALLEL, make_env
from extras.files import (
    CHECKPOINTS,
    game_of,
    killed_at_once,
    load_checkpoint,
    read_config,
    versions,
    write_atomic,
)
from extras.flags import INDIFFERENT, Parser
from extras.flags import number as in_range
from extras.run import Lock, hear, say
from mixer import MIXERS
from starcraft.cluster import connect, packed, travels, unpacked
from starcraft.sc2 import sc2_problem
from starcraft.worker import die_with_trainer

HERE = Path(__file__).resolve().parents[1]
SOURCES = "*.py", "extras/*.py", "starcraft/*.py", "starcraft/*.json"  # what a machine needs
# Flags of train.py that the sweep gives itself or that are not for training: {flag: what to give
# here instead, or None}.
TAKEN = {"--map": "--maps", "--mixer": "--mixers", "--seed": "--seeds", "--threads": "--cores"}
TAKEN |= {"--runs": "--out", "--run-dir": "--out"}
TAKEN |= dict.fromkeys(("--resume", "--evaluate", "--best", "--json", "--save-replay"))
TAKEN |= dict.fromkeys(("--init-from", "--device"))
NEWS = 2.0  # seconds after which a runner answers even if nothing has happened
LOOK = 0.2  # seconds from one look at the run to the next, until there is something to answer
TRIES = 3  # machines that a run may lose in a row before a test of it has come home
LAST_LINES = 6  # of a failed run's output, that are shown
CHILD = "import sys; from extras.sweep import child; sys.exit(child(*sys.argv[1:]))"


# --- on the machine where a run is put -----------------------------------------------------------


class Runner:
    """A Ray actor: one train.py in a process below it. On the driver's own machine it writes where
    the run belongs; elsewhere into a private directory, and the answers of `news` take it home."""

    def where(self):
        return platform.node()

    def start(self, sources, files, argv, folder=None):
        """Begin a run or, if there are files {name: array} of it, go on with it. folder: where it
        lies and shall lie, if this is the driver's own machine."""
        code = unpacked(sources) if folder is None else HERE
        self.home = Path(tempfile.mkdtemp(prefix="qmix-run-"))
        self.travels, self.folder = folder is None, folder or self.home / "run"
        self.taken, self.told = {}, False
        for name, data in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            self.taken[name] = stamp(path)
        theirs, self.ours = os.pipe()  # never written to: it closes when this actor ends
        begun = (self.folder / "config.json").exists()
        argv = [*argv, "--resume" if begun else "--run-dir", str(self.folder)]
        self.log = self.home / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CHILD, str(theirs), *argv],
                cwd=code, pass_fds=[theirs], start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        os.close(theirs)

    def news(self, stop):
        """(exit status or None, names of all files, {name: array} of those that are new, the end of
        the output). Waits until there is a new checkpoint or the end, NEWS seconds at most.
        stop: ask the run to save and end."""
        if stop and not self.told:
            self.told = True
            self.process.terminate()
        end = time.monotonic() + NEWS
        while True:
            status = self.process.poll()
            names, files = self.collect(status is not None) if self.travels else ([], {})
            if files or status is not None or time.monotonic() > end:
                break
            time.sleep(LOOK)
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        if status is not None:
            shutil.rmtree(self.home, ignore_errors=True)
        return status, names, files, lines

    def collect(self, ended):
        """Names of all files, and those that changed, if there is a whole new checkpoint.

        A checkpoint is written after all that it needs, and what only older ones need is deleted
        after it: while it is the same, what was read between is of one piece."""
        checkpoint = self.folder / CHECKPOINTS[0]
        while True:
            before = stamp(checkpoint)
            if not ended and before in (None, self.taken.get(checkpoint.name)):
                return [], {}
            paths = [path for path in self.folder.rglob("*") if path.is_file()]
            paths = [p for p in paths if p.name.partition(".")[2] not in ("prev.pt", "new.pt")]
            now = {p.relative_to(self.folder).as_posix(): stamp(p) for p in paths}
            now = {name: mark for name, mark in now.items() if mark and not name.endswith(".tmp")}
            try:
                new = [name for name, mark in now.items() if mark != self.taken.get(name)]
                files = {name: content(self.folder / name) for name in new}
            except FileNotFoundError:
                continue
            if stamp(checkpoint) == before:
                self.taken = now
                return list(now), files


def content(path):
    """Its bytes, as an array: Ray copies these once, where it would pickle bytes."""
    return np.fromfile(path, np.uint8)


def stamp(path):
    """Another one for another content; None if there is no such file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def child(pipe_fd, *argv):
    """train.py, as a process that ends when the other end of the pipe closes."""
    threading.Thread(target=die_with_trainer, args=(int(pipe_fd),), daemon=True).start()
    return train.main(list(argv))


# --- the runs, as they lie at home ---------------------------------------------------------------


@dataclass
class Job:
    """One run of the sweep, on the driver's side."""

    folder: Path
    argv: list
    flags: dict  # of train.py
    t_env: int = 0  # of the last test that came home
    win_rate: float = 0.0  # in it
    most: int = 0  # of t_env in this sweep: what is lost takes it back
    runner: object = None  # the Ray actor
    running: bool = False
    lost: int = 0  # machines in a row, with no test come home between
    failure: str = ""

    @property
    def done(self):
        return self.t_env >= self.flags["steps"]

    def look(self):
        """What has come home. Raises ValueError, one line, if that is damaged."""
        path = self.folder / "metrics.csv"
        if not path.exists():
            return
        try:
            with open(path, newline="") as file:
                *_, last = csv.DictReader(file)
            self.t_env, self.win_rate = int(last["t_env"]), float(last["test_win_rate"])
            if self.done and any((self.folder / name).exists() for name in CHECKPOINTS):
                # its last checkpoint may have been on its way home when the sweep was killed
                self.t_env = min(self.t_env, load_checkpoint(self.folder)[0]["progress"]["t_env"])
        except (ValueError, LookupError, TypeError, csv.Error) as error:
            raise ValueError(f"{self.folder} is damaged ({error}): move it away") from None

    def compare(self):
        """Raises ValueError, one line, where a run there has other flags or cannot go on."""
        if not self.folder.exists() or not any(self.folder.iterdir()):
            return
        saved = read_config(self.folder)["flags"]
        for name, value in json.loads(json.dumps(self.flags, default=str)).items():
            if name not in INDIFFERENT and name in saved and value not in (None, saved[name]):
                raise ValueError(
                    f"{self.folder} was begun with --{name.replace('_', '-')} {saved[name]}, not"
                    f" {value}: give the same, or another --out"
                )
        if not (self.done or self.files() or killed_at_once(self.folder)):
            raise ValueError(f"{self.folder} is not finished, and has no checkpoint: move it away")

    def files(self):
        """{name: array} of all that has come home; nothing if there is no checkpoint."""
        if not any((self.folder / name).exists() for name in CHECKPOINTS):
            return {}
        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        return {path.relative_to(self.folder).as_posix(): content(path) for path in paths}

    def receive(self, names, files):
        """What `Runner.news` answered. The checkpoint is written last: it needs the rest."""
        for name in sorted(files, key=lambda name: name == CHECKPOINTS[0]):
            path, data = self.folder / name, files[name]
            if name == "config.json":
                if path.exists():
                    continue
                data = with_revision(data)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, lambda file, data=data: file.write(data))
        if files:
            for path in self.folder.glob("buffer/*.pt"):
                if path.relative_to(self.folder).as_posix() not in names:
                    path.unlink()
            with contextlib.suppress(OSError):  # not there, or not empty
                (self.folder / "buffer").rmdir()
        self.look()


def with_revision(data):
    """config.json as train.py would have written it here, where the sources have a revision."""
    config, here = json.loads(bytes(data)), versions()
    config["versions"] |= {name: here[name] for name in here if name.startswith("git")}
    return (json.dumps(config, indent=2) + "\n").encode()


# --- all of them ---------------------------------------------------------------------------------


class Sweep:
    """Hands jobs to Ray until all are done, have failed, or a signal asks to stop."""

    def __init__(self, ray, jobs, cores, address):
        self.ray, self.jobs, self.signal, self.error = ray, jobs, 0, ""
        self.here = platform.node() if address is None else None  # where nothing has to travel
        self.left = [job for job in jobs if not job.done]
        self.Runner = ray.remote(num_cpus=cores)(Runner)
        self.sources = ray.put(packed(HERE, *SOURCES))
        self.waiting = {}  # {reference: (job, what was asked for)}
        self.begun, self.steps_before = time.monotonic(), self.steps()

    def steps(self):
        return sum(min(job.t_env, job.flags["steps"]) for job in self.jobs)

    def stop(self, number, _frame):
        """The first signal lets the runs save and come home; a second one ends all at once."""
        self.signal = number
        for other in self.usual:
            signal.signal(other, signal.default_int_handler)

    def run(self):
        self.usual = hear(self.stop)
        watched = sys.stderr.isatty() or "ipykernel" in sys.modules
        form = "{desc} |{bar}| {percentage:3.0f} % [{elapsed}<{postfix}]"
        total = sum(job.flags["steps"] for job in self.jobs)
        self.bar = tqdm(total=total, bar_format=form, disable=not watched)
        try:
            for job in self.left:
                self.launch(job)
            while self.waiting:
                self.show()
                ready, _ = self.ray.wait(list(self.waiting), timeout=NEWS)
                if self.signal:
                    self.drop_those_not_started()
                for reference in ready:
                    if reference in self.waiting:
                        self.answer(reference, *self.waiting.pop(reference))
        finally:
            for job in self.left:
                if job.runner:
                    self.ray.kill(job.runner)
            self.bar.close()
            for number, handler in self.usual.items():
                signal.signal(number, handler)

    def launch(self, job):
        job.runner, job.running = self.Runner.remote(), False
        self.ask(job, "where")

    def ask(self, job, what, *arguments):
        self.waiting[getattr(job.runner, what).remote(*arguments)] = job, what

    def drop_those_not_started(self):
        for reference, (job, what) in list(self.waiting.items()):
            if what == "where":
                del self.waiting[reference]
                self.end(job)

    def end(self, job):
        self.ray.kill(job.runner)
        job.runner, job.running = None, False

    def answer(self, reference, job, what):
        try:
            found = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:  # raised by Runner: a full disk, say
            self.fail(job, f"{type(error.cause).__name__}: {error.cause}")
        except self.ray.exceptions.RayError as error:  # the machine is gone, or its actor
            self.lose(job, type(error).__name__)
        else:
            if what == "where":
                job.running = True
                if found == self.here:
                    self.ask(job, "start", None, {}, job.argv, job.folder.resolve())
                else:
                    self.ask(job, "start", self.sources, job.files(), job.argv)
            elif what == "start":
                self.ask(job, "news", bool(self.signal))
            else:
                self.take(job, *found)

    def take(self, job, status, names, files, lines):
        try:
            job.receive(names, files)
        except ValueError as error:  # somebody has edited its files
            return self.fail(job, str(error))
        if job.t_env > job.most:
            job.most, job.lost = job.t_env, 0
        if status is None:
            self.ask(job, "news", bool(self.signal))
        elif job.done:
            self.end(job)
            say(f"{job.folder.name}: test win rate {job.win_rate:.3f} at the end; {self.summary()}")
        elif self.signal:
            self.end(job)
        elif 0 < status < 128:
            self.fail(job, f"exit status {status}; its last lines:", lines)
        else:  # killed, or stopped by a signal that was not ours
            self.lose(job, f"exit status {status}")

    def lose(self, job, why):
        self.end(job)
        job.lost += 1
        if job.lost >= TRIES:
            self.fail(job, f"lost {TRIES} times before a test of it came home ({why}); memory?")
        elif not self.signal:
            say(f"{job.folder.name}: lost ({why}), goes on from t_env {job.t_env}")
            self.launch(job)

    def fail(self, job, why, lines=()):
        if job.runner:
            self.end(job)
        job.failure = "\n    ".join([why, *lines])
        say(f"{job.folder.name}: failed; {self.summary()}")

    def summary(self):
        # the last test comes home before the program has ended
        done = sum(job.done and not (job.running or job.failure) for job in self.jobs)
        running = sum(job.running for job in self.jobs)
        failed = sum(bool(job.failure) for job in self.jobs)
        left = len(self.jobs) - done - running - failed
        return f"{done} done, {running} running, {left} left" + f", {failed} failed" * bool(failed)

    def show(self):
        steps = self.steps()
        rate = (steps - self.steps_before) / (time.monotonic() - self.begun)
        self.bar.n = steps
        left = tqdm.format_interval((self.bar.total - steps) / rate) if rate > 0 else "?"
        self.bar.set_description_str(self.summary(), refresh=False)
        self.bar.set_postfix_str(left)


def seeds(text):
    """An argparse type: "3" -> [3], "1-5" -> [1, 2, 3, 4, 5]."""
    found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if first > last:
        raise argparse.ArgumentTypeError(f"{text} is not a seed, as 3, or a range, as 1-5")
    return list(range(first, last + 1))


def plan(parser, args, rest):
    """The jobs, seed after seed, so that what is left out at the end are seeds and not methods.
    rest: flags for train.py. Raises ValueError or exits, with one line, if something is wrong."""
    for word in rest:
        if (name := word.partition("=")[0]) in TAKEN:
            instead = f"give {TAKEN[name]}" if TAKEN[name] else "leave it out"
            parser.error(f"{name} is not for the runs of a sweep: {instead}")
    jobs, games = {}, {}
    for seed, map_name, mixer in product(chain(*args.seeds), args.maps, args.mixers):
        argv = [*rest, "--map", map_name, "--mixer", mixer, "--seed", str(seed)]
        argv += ["--threads", str(args.cores), "--device", "cpu"]
        flags, _ = train.parse_args(argv)
        if map_name not in games:
            games[map_name] = what_is_played(flags)
        env, game, _ = games[map_name]
        if flags.env == "auto":  # decided here, so that it is the same on all machines
            argv += ["--env", env]
        flags = vars(flags) | {"env": env}
        if env != "sc2":
            flags["n_envs"] = flags["n_envs"] or PARALLEL
        folder = args.out / f"{game}_{mixer}_s{seed}".replace("/", "-")
        if folder in jobs and jobs[folder].flags["map"] != map_name:
            raise ValueError(f"environment {env} knows no maps, all are {game}: give one of --maps")
        jobs[folder] = Job(folder, argv, flags)
    for problem in dict.fromkeys(problem for *_, problem in games.values() if problem):
        print(f"Playing the simulator, not StarCraft II: {problem}", file=sys.stderr)
    for job in jobs.values():
        job.look()
        job.compare()
    return list(jobs.values())


def what_is_played(flags):
    """(environment, game, why "auto" is not StarCraft II) of the runs. Raises ValueError, one line,
    where they could not begin; whether StarCraft II can be played turns out on the machines."""
    env, problem = flags.env, None
    if env == "auto":
        problem = sc2_problem(flags.map)
        env = "sim" if problem else "sc2"
    if env == "sc2":
        return env, flags.map, problem
    made = make_env(env, flags.map, 1, 0, **dict(flags.env_args))
    made.close()
    return env, game_of(made), problem


def parse(argv):
    p = Parser(
        prog="sweep.py",
        description="Many runs of train.py, for every map, mixer and seed. Other flags are those of"
        " train.py and hold for all runs.",
    )
    cores = in_range(int, 1, 1024)
    p.add_argument("--maps", nargs="+", default=["2s3z"], metavar="MAP", help="see train.py --map")
    p.add_argument("--mixers", nargs="+", default=["qmix"], choices=MIXERS, help="see mixer.py")
    p.add_argument("--seeds", nargs="+", type=seeds, default=[[1]], metavar="N", help="1 2, 1-5")
    p.add_argument(
        "--out", type=Path, default=Path("runs/sweep"), metavar="DIR", help="of the runs"
    )
    p.add_argument("--address", default=None, help="of a Ray cluster; auto: of this machine's")
    p.add_argument("--cores", type=cores, default=1, help="of a run, and its --threads")
    return *p.parse_known_args(argv), p


def remove_if_empty(folder):
    with contextlib.suppress(OSError):  # not there, or there is something in it
        folder.rmdir()


def main(argv=None):
    """Returns the exit status: 0, 1 if a run failed, 128 + signal if stopped."""
    args, rest, parser = parse(argv)
    with contextlib.ExitStack() as at_the_end:
        with parser.refuses():
            jobs = plan(parser, args, rest)
            left = [job for job in jobs if not job.done]
            if not left:
                say(f"All {len(jobs)} runs in {args.out} are finished: there is nothing to do.")
                return 0
            # Where nothing travels, it is train.py that locks the folder of a run.
            for folder in [args.out, *(job.folder for job in left if args.address)]:
                folder.mkdir(parents=True, exist_ok=True)
                at_the_end.callback(Lock(folder).release)
                at_the_end.callback(remove_if_empty, folder)
            for job in left:
                at_the_end.callback(remove_if_empty, job.folder)
            ray = connect(args.address)
            at_the_end.callback(ray.shutdown)
            nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
            if max(nodes) < args.cores:
                raise ValueError(f"no machine has {args.cores} cores, at most {max(nodes):.0f}")
        travels(__name__)
        sweep = Sweep(ray, jobs, args.cores, args.address)
        room = f"Ray has {sum(nodes):.0f} cores on {len(nodes)} machines"
        say(f"{args.out}: {sweep.summary()}; {room}")
        try:
            sweep.run()
        except KeyboardInterrupt:
            say("Stopped at once: what the runs did since their last tests is lost.")
        except (OSError, ray.exceptions.RayError) as error:  # a full disk here; the cluster is gone
            sweep.error = " ".join(str(error).split())[:300]
    failed = [job for job in jobs if job.failure]
    for job in failed:
        print(f"sweep.py: {job.folder.name} failed: {job.failure}", file=sys.stderr)
    if sweep.error:
        print(
            f"sweep.py: error: {sweep.error}; mend that, and the same command goes on",
            file=sys.stderr,
        )
        return 1
    if sweep.signal:
        say(f"Stopped: {sweep.summary()}. The same command goes on.")
        return 128 + sweep.signal
    say(f"{args.out}: {sweep.summary()}. Curves: python -m extras.plot {args.out}/*")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
