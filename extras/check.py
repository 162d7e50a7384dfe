"""Is this the checkpoint that this run would have written? Asked before anything is taken from it.

A file from a stranger, or one that somebody has edited, must not be able to crash the program: the
compiled rules and torch use many of its numbers as indices. Not a script.

Shapes: E environments, N agents, A actions, T steps of an episode.
"""

import itertools
import math

import numpy as np
import torch

from buffer import DONE, SEEN


def check(value, like, name: str) -> None:
    """Raises ValueError, one line that begins with `name`, where value is not like `like`: a
    dictionary (the same keys, their values alike), a tensor or array (the same kind and shape, and
    nothing but finite numbers), a type, or a function that returns whether the value is right."""
    if isinstance(like, dict):
        if not isinstance(value, dict) or value.keys() != like.keys():
            raise ValueError(f"{name} must have {', '.join(map(str, like))}, and nothing else")
        for key in like:
            check(value[key], like[key], f"{name}, {key}")
    elif isinstance(like, np.ndarray | torch.Tensor):
        like = torch.as_tensor(like)
        right = isinstance(value, torch.Tensor) and value.dtype == like.dtype
        if not right or value.shape != like.shape or not value.isfinite().all():
            raise ValueError(
                f"{name} must be finite numbers, {like.dtype} of shape {tuple(like.shape)}"
            )
    elif not (type(value) is like if isinstance(like, type) else like(value)):
        raise ValueError(f"{name} is wrong")


def types_of(x):
    """What check takes for `like`, where x may have other values but is made alike."""
    if isinstance(x, dict):
        return {key: types_of(value) for key, value in x.items()}
    return x if isinstance(x, torch.Tensor | np.ndarray) else type(x)


def whole(low: int, high: float = 2**62):
    """Is it an int from low to high?"""
    return lambda value: type(value) is int and low <= value <= high


def finite(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def seconds(value) -> bool:
    return finite(value) and value >= 0


def rows(value) -> bool:
    """Of metrics.csv: dictionaries of numbers, t_env growing."""
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        return False
    needed = {"t_env", "wall_time", "test_win_rate", "test_return"}
    for row in value:
        numbers = all(x is None or finite(x) for x in row.values())
        if not numbers or any(row.get(name) is None for name in needed):
            return False
    t_env = [row["t_env"] for row in value]
    names = all(isinstance(name, str) and "," not in name for row in value for name in row)
    return names and all(a < b for a, b in itertools.pairwise(t_env))


def sums(value) -> bool:
    """name: [sum, count]"""
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(pair, list) and len(pair) == 2
        and finite(pair[0]) and whole(1)(pair[1]) for name, pair in value.items()
    )  # fmt: skip


PROGRESS = {
    "t_env": whole(0),
    "episodes": whole(0),
    "updates": whole(0),
    "aborted_episodes": whole(0),
    "wall_time": seconds,
    "rows": rows,
    "sums": sums,
}


def check_optimiser(saved, optimiser, name: str) -> None:
    """Its memory: for each weight that has been stepped, what such an optimiser remembers."""
    probe = torch.nn.Parameter(torch.zeros(2))
    probe.grad = torch.zeros(2)
    other = type(optimiser)([probe], **optimiser.defaults)
    other.step()
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    if not isinstance(saved, dict) or not isinstance(saved.get("state"), dict):
        raise ValueError(f"{name} has no state")
    if not saved["state"].keys() <= set(range(len(weights))):
        raise ValueError(f"{name} is that of other weights")
    for i, memory in saved["state"].items():
        like = {  # of the weight's shape, or a single number
            key: torch.zeros(weights[i].shape if x.shape == probe.shape else x.shape, dtype=x.dtype)
            for key, x in other.state[probe].items()
        }
        check(memory, like, f"{name}, weight {i}")


def check_episode(episode: dict, buffer, name: str) -> None:
    """Raises ValueError, one line, where this is no finished episode for the buffer."""
    T = len(episode["reward"])
    ended = episode["terminated"] | episode["truncated"]
    right = 1 <= T <= buffer.episode_limit and ended[-1:].all() and not ended[:-1].any()
    for key in DONE:
        like = buffer.running[key]
        right = right and episode[key].shape == (T, *like.shape[2:])
        right = right and episode[key].dtype == like.dtype
    right = right and in_range(episode["actions"], buffer) and np.isfinite(episode["reward"]).all()
    for key in SEEN:
        like, values, bits = buffer.running[key], episode[key], episode[key + "_bits"]
        size = (T + 1) * math.prod(like.shape[2:])
        right = right and values.dtype == like.dtype and bits.dtype == np.uint8
        right = right and bits.shape == (math.ceil(size / 8),)
        right = right and values.shape == (np.unpackbits(bits, count=size).sum(),)
        right = right and np.isfinite(values).all()
    if not right:
        raise ValueError(f"{name} holds no episodes of this run")


def in_range(actions: np.ndarray, buffer) -> bool:
    A = buffer.running["avail_actions"].shape[-1]
    return bool(((actions >= 0) & (actions < A)).all())


def check_running(saved: dict, buffer, name: str) -> None:
    """The buffer's part of a checkpoint: running episodes (E, longest, ...), and how far they are.
    Raises ValueError, one line."""
    like = {"steps": buffer.steps, "running": dict, "pieces": list}
    check(saved, like, name)
    steps = saved["steps"]
    if steps.min() < 0 or steps.max() > buffer.episode_limit:
        raise ValueError(f"{name}, steps must be from 0 to {buffer.episode_limit}")
    longest = int(steps.max())
    like = {key: array[:, :longest] for key, array in buffer.running.items()}
    check(saved["running"], like, f"{name}, running")
    if not in_range(saved["running"]["actions"].numpy(), buffer):
        raise ValueError(f"{name}, running, actions are wrong")
    pieces = saved["pieces"]
    if not all(map(whole(1), pieces)) or len(pieces) > 1000:
        raise ValueError(f"{name}, pieces are wrong")
