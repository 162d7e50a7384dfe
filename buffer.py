"""Replay of whole episodes for recurrent Q-learning, as in QMIX (https://arxiv.org/abs/1803.11485).

The running episodes, one per environment, are written into arrays with room for the longest. A
finished one is kept as a copy of what it has filled, less most of its zeros: the observations of
the dead, and the state's (27 one-hot actions, for example).

Not a script. See it at work: python train.py --map 2s3z

Shapes: E environments, B batch, T time, N agents, A actions, O observation, S state.
"""

import os
from collections import deque
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SEEN = ("obs", "state", "avail_actions")  # an episode has them once more, after its last step
MEMORY_SHARE = 0.75  # of the free memory may be replay; learner and everything else need some too


class Batch(NamedTuple):
    """B episodes, time first because the GRU unrolls over it; longest episode in column 0.

    Step t is obs[t], actions[t] -> reward[t], obs[t + 1]. Where filled is False there is padding:
    all actions are available, everything else is 0 or False.
    """

    obs: Tensor  # (T + 1, B, N, O) float32
    state: Tensor  # (T + 1, B, S) float32
    avail_actions: Tensor  # (T + 1, B, N, A) bool
    actions: Tensor  # (T, B, N) int64
    reward: Tensor  # (T, B) float32
    terminated: Tensor  # (T, B) bool: the episode ended here, by the rules of the game
    truncated: Tensor  # (T, B) bool: the episode was cut here, by the time limit
    filled: Tensor  # (T, B) bool

    def to(self, device) -> "Batch":
        return Batch(*(tensor.to(device) for tensor in self))


class ReplayBuffer:
    """The last `capacity` finished episodes, and a running one for each of n_envs environments.

    The oldest go sooner where all would take more than MEMORY_SHARE of the memory free now. Raises
    ValueError if not even episodes of a tenth of episode_limit would fit into that.
    """

    def __init__(
        self,
        capacity: int,
        n_envs: int,
        episode_limit: int,
        n_agents: int,
        n_actions: int,
        obs_dim: int,
        state_dim: int,
    ):
        step = {  # name: (shape, dtype)
            "obs": ((n_agents, obs_dim), np.float32),
            "state": ((state_dim,), np.float32),
            "avail_actions": ((n_agents, n_actions), np.bool_),
            "actions": ((n_agents,), np.uint8 if n_actions <= 256 else np.int16),
            "reward": ((), np.float32),
            "terminated": ((), np.bool_),
            "truncated": ((), np.bool_),
        }
        self.capacity, self.episode_limit = capacity, episode_limit
        self.running = {  # (E, L + 1, ...)
            name: np.zeros((n_envs, episode_limit + 1, *shape), dtype)
            for name, (shape, dtype) in step.items()
        }
        self.steps = np.zeros(n_envs, np.int64)  # (E,) of each running episode, so far
        self.episodes = deque()  # oldest first; each a dict of arrays, see close
        self.held = 0  # bytes in them
        one = size(self.running) // n_envs
        self.nbytes = (capacity + n_envs) * one  # if every episode took all its time
        self.limit = MEMORY_SHARE * available_memory()
        if self.nbytes > 10 * self.limit:
            raise ValueError(
                f"a replay buffer of {capacity} episodes needs {self.nbytes / 1e10:.1f} GB even if"
                f" they end after a tenth of the time limit, and may have {self.limit / 1e9:.1f} GB"
                f" (of the free memory, {MEMORY_SHARE:.0%}): reduce --buffer-size (at most"
                f" {max(int(10 * self.limit / one) - n_envs, 0)} episodes)"
            )

    def __len__(self) -> int:
        """How many finished episodes are stored."""
        return len(self.episodes)

    def __str__(self) -> str:
        text = (
            f"replay buffer: {self.capacity} episodes of up to {self.episode_limit} steps,"
            f" at most {self.nbytes / 1e9:.2f} GB when full"
        )
        if self.nbytes > self.limit:
            text += f"; fewer episodes if they need more than {self.limit / 1e9:.2f} GB"
        return text

    def add(self, obs, state, avail_actions, actions, reward, terminated, truncated) -> None:
        """Store one step of all E environments.

        obs (E, N, O), state (E, S), avail_actions (E, N, A): what the actions were chosen from.
        actions (E, N), reward (E,), terminated (E,), truncated (E,): what was done and came of it.
        """
        if self.steps.max() >= self.episode_limit:
            raise RuntimeError(f"an episode went on after {self.episode_limit} steps: close it")
        values = obs, state, avail_actions, actions, reward, terminated, truncated
        for array, value in zip(self.running.values(), values, strict=True):
            array[np.arange(len(self.steps)), self.steps] = value
        self.steps += 1

    def close(self, mask, obs, state, avail_actions) -> None:
        """End the episodes of the environments in mask (E,) bool, with the observation after their
        last step: obs (E, N, O), state (E, S), avail_actions (E, N, A)."""
        for env in np.flatnonzero(mask):
            t = self.steps[env]
            if t == 0:
                raise RuntimeError(f"environment {env} closed an episode without steps")
            for name, value in zip(SEEN, (obs, state, avail_actions), strict=True):
                self.running[name][env, t] = value[env]
            episode = {
                name: array[env, : t + (name in SEEN)].copy()
                for name, array in self.running.items()
            }
            where = {"obs": episode["obs"].any(axis=-1), "state": episode["state"] != 0}
            for name, mask in where.items():  # mask: (t + 1, N), (t + 1, S)
                episode[name], episode[name + "_at"] = episode[name][mask], mask
            self.append(episode)
            self.steps[env] = 0

    def append(self, episode: dict) -> None:
        """Store a finished episode; the oldest make room."""
        self.episodes.append(episode)
        self.held += size(episode)
        while len(self.episodes) > self.capacity or self.held > self.limit:
            self.held -= size(self.episodes.popleft())

    def drop(self, mask) -> None:
        """Forget the running episodes of the environments in mask (E,) bool."""
        self.steps[mask] = 0

    def clear(self) -> None:
        """Forget everything."""
        self.episodes.clear()
        self.held, self.steps[:] = 0, 0

    def can_sample(self, batch_size: int) -> bool:
        return len(self) >= batch_size

    def sample(self, batch_size: int, rng: np.random.Generator) -> Batch:
        """batch_size different episodes, all equally likely; time ends with the longest of them."""
        if not self.can_sample(batch_size):
            raise ValueError(f"{batch_size} episodes wanted, {len(self)} stored")
        chosen = [self.episodes[i] for i in rng.choice(len(self), batch_size, replace=False)]
        chosen.sort(key=lambda episode: len(episode["reward"]), reverse=True)
        length = np.array([len(episode["reward"]) for episode in chosen])  # (B,)
        batch = {
            name: np.zeros((length[0] + (name in SEEN), batch_size, *array.shape[2:]), array.dtype)
            for name, array in self.running.items()
        }
        batch["avail_actions"][:] = True
        for b, episode in enumerate(chosen):
            for name, array in batch.items():
                column = array[: length[b] + (name in SEEN), b]
                column[episode.get(name + "_at", ...)] = episode[name]
        batch["actions"] = batch["actions"].astype(np.int64)
        batch["filled"] = np.arange(length[0])[:, None] < length  # (T, B)
        return Batch(**{name: torch.from_numpy(array) for name, array in batch.items()})


def size(arrays: dict) -> int:
    """Bytes in all of them."""
    return sum(array.nbytes for array in arrays.values())


def available_memory() -> float:
    """Bytes that can still be used; all of the machine's where only that is known; or infinity."""
    try:
        with open("/proc/meminfo") as lines:  # Linux
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # macOS
    except (AttributeError, ValueError, OSError):
        return float("inf")
