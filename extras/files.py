"""The files of a run directory: no kill and no power cut can spoil them, and damage is recognised.

QMIX (https://arxiv.org/abs/1803.11485). Not a script; run.py writes with it, plot.py reads:

    config.json      every flag, versions, git revision, environment really used
    metrics.csv      one row per test; empty cells where nothing was measured yet
    checkpoint.pt    everything needed to go on; checkpoint.prev.pt is the one before it
    best.pt          the network of the best test
    buffer/          the replay buffer in pieces: each checkpoint adds only what is new
    events.out...    the scalars of metrics.csv for TensorBoard

A file is written under a temporary name, flushed to the disk and renamed. Whenever the power goes,
its name stands for the whole old file or the whole new one.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch

from buffer import DONE, SEEN
from extras.check import check_episode

CHECKPOINTS = ("checkpoint.pt", "checkpoint.prev.pt")  # the newest, the one before it
FORMAT = 3  # of checkpoint.pt: raise it when an older one can no longer be read
MAX_PIECES = 64  # of the replay buffer; more are merged into one


def write_atomic(path: Path, write) -> None:
    """Replace the file `path` by what write(file) writes. Raises OSError (disk full, no permission)
    and leaves the old file as it was."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None  # torch.save had covered it up
        raise
    if os.name == "posix":  # the new name, too, must survive a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


# --- config.json and metrics.csv ----------------------------------------------------------------


def write_config(folder: Path, config: dict) -> None:
    text = json.dumps(config, indent=2) + "\n"
    write_atomic(folder / "config.json", lambda file: file.write(text.encode()))


def read_config(folder: Path) -> dict:
    """Raises ValueError, one line, if this is no run directory or its config.json is damaged."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise ValueError(f"there is no run directory {folder}")
    if not path.is_file():
        raise ValueError(f"{folder} is not a run directory: it has no config.json")
    try:
        config = json.loads(path.read_text())
        flags, env = config["flags"], config["env"]
        names = flags["map"], flags["mixer"], env["name"], env["map"]
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"not all of them are names: {names}")
        int(flags["seed"])
        dict(flags.get("env_args", []))  # fails if it is no list of pairs
        config.setdefault("versions", {}).get("git")  # or this no dictionary
    except (
        ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, OSError
    ) as error:  # fmt: skip
        raise ValueError(f"{path} is damaged ({error}): restore it, or start a new run") from None
    return config


def describe(flags: dict, env, buffer) -> dict:
    """config.json of a new run."""
    sizes = ("n_envs", "n_agents", "n_actions", "obs_dim", "state_dim", "episode_limit")
    played = {"name": env.name, "version": getattr(env, "version", None), "map": game_of(env)}
    return {
        "flags": flags,
        "env": played | {name: getattr(env, name) for name in sizes},
        "versions": versions(),
        "buffer_bytes_when_full": buffer.nbytes,
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def with_this_code(config: dict) -> dict:
    """config.json of a run that goes on, with today's git revision, too, if that is another one or
    has uncommitted changes. Changes its argument."""
    begun, now = config["versions"], versions()
    before, last = begun.get("git"), now["git"]
    changed = " with uncommitted changes" if now.get("git_uncommitted") else ""
    if before and last and (last != before or changed or "git_last" in begun):
        goes_on = f"goes on with {last[:7]}{changed}"
        print(f"Begun with revision {before[:7]}, {goes_on}", file=sys.stderr)
        begun |= {"git_last": last, "git_last_uncommitted": bool(changed)}
    return config


def game_of(env) -> str:
    """What is really played: the map or, for a game without maps, the game."""
    return getattr(env, "map_name", env.name)


def write_metrics(folder: Path, rows: list[dict]) -> None:
    """All rows anew: there are a few hundred at most, and no half a line can be left behind. The
    columns are all that any row has, in the order in which they came up."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, *([cell(row.get(name)) for name in columns] for row in rows)]
    text = "".join(",".join(line) + "\n" for line in lines)
    write_atomic(folder / "metrics.csv", lambda file: file.write(text.encode()))


def cell(value) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def versions() -> dict:
    """What a result may depend on: Python, packages, machine, and the git revision of this code."""
    found = {"python": platform.python_version(), "machine": platform.platform()}
    for package in ("torch", "numpy", "numba", "scipy"):
        found[package] = importlib.metadata.version(package)
    git = ("git", "-C", str(Path(__file__).resolve().parent))
    try:
        revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True)
    except OSError:  # git is not installed
        return found | {"git": None}
    if revision.returncode:  # the code is in no repository
        return found | {"git": None}
    uncommitted = bool(changed.stdout.strip())
    return found | {"git": revision.stdout.decode().strip(), "git_uncommitted": uncommitted}


# --- checkpoints --------------------------------------------------------------------------------


def save_checkpoint(folder: Path, state: dict) -> None:
    """Write checkpoint.pt; the one that was there becomes checkpoint.prev.pt."""
    new, path = folder / "checkpoint.new.pt", folder / "checkpoint.pt"
    write_atomic(new, lambda file: torch.save({"format": FORMAT, **to_tensors(state)}, file))
    if path.exists():
        os.replace(path, folder / "checkpoint.prev.pt")
    os.replace(new, path)


def killed_at_once(folder: Path) -> bool:
    """True if a run ended before its first checkpoint, which follows its first test."""
    path = folder / "metrics.csv"
    tests = path.read_text(errors="replace").splitlines()[1:] if path.exists() else []
    return len(tests) <= 1 and not any((folder / name).exists() for name in CHECKPOINTS)


def load_checkpoint(folder: Path) -> tuple[dict, Path, str]:
    """The newest whole checkpoint, the file it came from, and what to say if the newest is damaged
    and the one before it is used. Raises ValueError, one line, if there is none."""
    damaged = []
    for path in (folder / name for name in CHECKPOINTS if (folder / name).exists()):
        try:
            state = load(path)
        except ValueError as error:
            damaged.append(str(error))
            continue
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError(f"{path} is not a checkpoint of this version of the program")
        return state, path, f"{damaged[0]}: going back to {path.name}" if damaged else ""
    if damaged:
        raise ValueError(f"no whole checkpoint is left: {'; '.join(damaged)}")
    raise ValueError(f"{folder} holds no checkpoint yet: start the run again")


def newest(folder: Path) -> dict:
    """The newest whole checkpoint; says so on stderr if it is not the newest of all. Raises as
    load_checkpoint does."""
    state, _, warning = load_checkpoint(folder)
    if warning:
        print(warning, file=sys.stderr)
    return state


def network(state: dict, name: str) -> dict:
    """The weights of a network in a checkpoint. Raises ValueError, one line, if there are none."""
    learner = state.get("learner")
    if not isinstance(learner, dict) or not isinstance(learner.get(name), dict):
        raise ValueError(f"the checkpoint holds no network {name}")
    return learner[name]


def load_weights(part, weights: dict) -> None:
    """part.load_state_dict(weights). Raises ValueError, one line, if they do not fit."""
    try:
        part.load_state_dict(weights)
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())[:250]
        raise ValueError(
            f"the checkpoint holds another network than map and flags ask for: {why}"
        ) from None


def load(path: Path):
    """What torch.save wrote: tensors, numbers and strings only, as weights_only=True keeps a file
    from a stranger from running code. Raises ValueError, one line, if even one bit is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself does not look at the checksums
            if archive.testzip():
                raise ValueError("a checksum does not match")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage surfaces as anything, from deep inside zip or pickle
        why = " ".join(str(error).split())[:100] or type(error).__name__
        raise ValueError(f"{path} is damaged ({why})") from None


def to_tensors(x):
    """numpy arrays inside dicts, lists and tuples become tensors, numpy scalars plain numbers."""
    if isinstance(x, dict):
        return {key: to_tensors(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(map(to_tensors, x))
    if isinstance(x, np.generic):
        return x.item()
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x


def to_arrays(x):
    """The way back: tensors inside dicts, lists and tuples become numpy arrays."""
    if isinstance(x, dict):
        return {key: to_arrays(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(map(to_arrays, x))
    return x.numpy() if isinstance(x, torch.Tensor) else x


class BufferFiles:
    """The replay buffer on disk. A full one has hundreds of megabytes, so a checkpoint writes only
    the episodes closed since the checkpoint before, as a new piece: a file named after the number
    of episodes closed by then. The running episodes go into the checkpoint itself. A piece that
    neither checkpoint.pt nor checkpoint.prev.pt needs is deleted."""

    def __init__(self, folder: Path, buffer):
        self.folder, self.buffer = folder / "buffer", buffer
        self.needed = self.needed_before = []  # pieces of the last checkpoint and the one before

    def pieces(self) -> list[Path]:
        return [path for path in self.folder.glob("*.pt") if path.stem.isdecimal()]

    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.pieces())

    def save(self, episodes: int) -> dict:
        """Write what is new; `episodes` have been closed since the run began. Returns what belongs
        into the checkpoint. Call clean() once that is on disk."""
        buffer = self.buffer
        oldest = episodes - len(buffer)  # as many had been closed before it
        kept = [number for number in self.needed if number > oldest]
        if len(kept) >= MAX_PIECES and kept[-1] < episodes:
            kept = []
        first = kept[-1] if kept else oldest
        if first < episodes:
            self.folder.mkdir(exist_ok=True)
            new = [buffer.episodes[number - oldest] for number in range(first, episodes)]
            arrays = {name: np.concatenate([e[name] for e in new]) for name in new[0]}
            arrays["lengths"] = np.array([[len(array) for array in e.values()] for e in new])
            path = self.folder / f"{episodes}.pt"
            write_atomic(path, lambda file: torch.save(to_tensors(arrays), file))
            kept.append(episodes)
        self.needed_before, self.needed = self.needed, kept
        longest = buffer.steps.max()
        running = {name: array[:, :longest].copy() for name, array in buffer.running.items()}
        return {"pieces": kept, "steps": buffer.steps.copy(), "running": running}

    def clean(self) -> None:
        needed = {f"{number}.pt" for number in self.needed + self.needed_before}
        for path in self.folder.glob("[0-9]*.pt*"):  # half-written ones too
            if path.name not in needed:
                path.unlink()

    def load(self, saved: dict | None) -> None:
        """Fill the buffer, empty so far, with what `save` returned. Raises ValueError, one line, if
        that is None, or a piece is missing or damaged."""
        if saved is None:
            raise ValueError("it was not saved")
        buffer, episodes = self.buffer, []
        names = [*DONE, *SEEN, *(name + "_bits" for name in SEEN)]
        for number in saved["pieces"]:
            path = self.folder / f"{number}.pt"
            arrays = to_arrays(load(path))
            try:
                ends = arrays.pop("lengths").cumsum(axis=0)[:-1]  # (episodes - 1, names)
                parts = map(np.split, arrays.values(), ends.T)
                for episode in zip(*parts, strict=True):
                    episode = {k: a.copy() for k, a in zip(arrays, episode, strict=True)}
                    check_episode({name: episode[name] for name in names}, buffer, str(path))
                    episodes.append(episode)
            except (KeyError, TypeError, AttributeError, IndexError) as error:
                raise ValueError(
                    f"{path} holds no episodes that this version can read ({error!r})"
                ) from None
        saved = to_arrays(saved)
        for episode in episodes:  # now that all of them could be read
            buffer.append(episode)
        buffer.steps = saved["steps"].copy()
        for name, array in saved["running"].items():
            buffer.running[name][:, : array.shape[1]] = array
        self.needed = self.needed_before = saved["pieces"]

    def delete(self) -> None:
        """For a run that keeps no replay, or is finished."""
        self.needed = self.needed_before = []
        self.clean()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
