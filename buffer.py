"""Replay of whole episodes for recurrent Q-learning, as in QMIX (https://arxiv.org/abs/1803.11485).

Every environment writes its running episode straight into a slot of the buffer. Closing the episode
makes the slot sampleable and gives the environment the oldest slot instead. All arrays are there
from the start, but the operating system hands out memory only for the pages that are written to.

Not a script. See it at work: python train.py --map 2s3z

Shapes: E environments, B batch, T time, N agents, A actions, O observation, S state.
"""

import os
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Batch(NamedTuple):
    """B episodes, time first because the GRU unrolls over it; longest episode in column 0.

    Step t is obs[t], actions[t] -> reward[t], obs[t + 1]. Steps with filled False are padding: the
    reward is 0, terminated and truncated are False, all actions are available, the rest is stale.
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
    """The last `capacity` finished episodes, and one open episode for each of n_envs environments.

    Raises ValueError if a full buffer would not fit into the memory that is free now.
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
        slots, L = capacity + n_envs, episode_limit
        action_dtype = np.uint8 if n_actions <= 256 else np.int16
        layout = {  # name: (shape, dtype); L + 1 leaves room for what follows the last step
            "obs": ((slots, L + 1, n_agents, obs_dim), np.float32),
            "state": ((slots, L + 1, state_dim), np.float32),
            "avail_actions": ((slots, L + 1, n_agents, n_actions), np.bool_),
            "actions": ((slots, L, n_agents), action_dtype),
            "reward": ((slots, L), np.float32),
            "terminated": ((slots, L), np.bool_),
            "truncated": ((slots, L), np.bool_),
        }
        self.nbytes = sum(
            int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            for shape, dtype in layout.values()
        )
        available = available_memory()
        if available is not None and self.nbytes > available:
            fits = int(slots * available / self.nbytes) - n_envs
            raise ValueError(
                f"a replay buffer of {capacity} episodes needs up to {self.nbytes / 1e9:.1f} GB and"
                f" {available / 1e9:.1f} GB of memory are free: reduce --buffer-size (at most"
                f" {max(fits, 0)} episodes fit)"
            )
        self.data = {name: np.zeros(shape, dtype) for name, (shape, dtype) in layout.items()}
        self.capacity, self.n_envs, self.episode_limit = capacity, n_envs, episode_limit
        self.length = np.zeros(slots, np.int64)  # steps written into each slot
        self.open = np.arange(n_envs)  # (E,) the slot each environment writes to
        # Ring of the other slots. At `head` lies the one to be given away next: one never used or,
        # once all have been, the oldest episode. Finished episodes are ring[:len(self)].
        self.ring = np.arange(n_envs, slots)
        self.head = 0
        self.count = 0

    def __len__(self) -> int:
        """How many finished episodes are stored."""
        return self.count

    def __str__(self) -> str:
        return (
            f"replay buffer: {self.capacity} episodes of up to {self.episode_limit} steps,"
            f" at most {self.nbytes / 1e9:.2f} GB when full"
        )

    def add(self, obs, state, avail_actions, actions, reward, terminated, truncated) -> None:
        """Store one step of all E environments.

        obs (E, N, O), state (E, S), avail_actions (E, N, A): what the actions were chosen from.
        actions (E, N), reward (E,), terminated (E,), truncated (E,): what was done and came of it.
        """
        slots, t = self.open, self.length[self.open]
        if t.max() >= self.episode_limit:
            raise RuntimeError(f"an episode went on after {self.episode_limit} steps: close it")
        self.data["obs"][slots, t] = obs
        self.data["state"][slots, t] = state
        self.data["avail_actions"][slots, t] = avail_actions
        self.data["actions"][slots, t] = actions
        self.data["reward"][slots, t] = reward
        self.data["terminated"][slots, t] = terminated
        self.data["truncated"][slots, t] = truncated
        self.length[slots] += 1

    def close(self, mask, obs, state, avail_actions) -> None:
        """End the episodes of the environments in mask (E,) bool, with the observation after their
        last step: obs (E, N, O), state (E, S), avail_actions (E, N, A)."""
        for env in np.flatnonzero(mask):
            slot = self.open[env]
            t = self.length[slot]
            if t == 0:
                raise RuntimeError(f"environment {env} closed an episode without steps")
            self.data["obs"][slot, t] = obs[env]
            self.data["state"][slot, t] = state[env]
            self.data["avail_actions"][slot, t] = avail_actions[env]
            self.open[env], self.ring[self.head] = self.ring[self.head], slot
            self.length[self.open[env]] = 0
            self.head = (self.head + 1) % self.capacity
            self.count = min(self.count + 1, self.capacity)

    def drop(self, mask) -> None:
        """Forget the running episodes of the environments in mask (E,) bool."""
        self.length[self.open[mask]] = 0

    def can_sample(self, batch_size: int) -> bool:
        return self.count >= batch_size

    def sample(self, batch_size: int, rng: np.random.Generator) -> Batch:
        """batch_size different episodes, all equally likely; time ends with the longest of them."""
        if not self.can_sample(batch_size):
            raise ValueError(f"{batch_size} episodes wanted, {self.count} stored")
        slots = self.ring[rng.choice(self.count, batch_size, replace=False)]
        slots = slots[np.argsort(-self.length[slots], kind="stable")]
        length = self.length[slots]  # (B,)
        T = length[0]
        t = np.arange(T + 1)[:, None]  # (T + 1, 1); with slots (B,) it picks (T + 1, B, ...)
        obs, state, avail_actions = (
            self.data[name][slots, t] for name in ("obs", "state", "avail_actions")
        )
        actions, reward, terminated, truncated = (
            self.data[name][slots, t[:-1]]
            for name in ("actions", "reward", "terminated", "truncated")
        )
        # A slot still holds its former, perhaps longer, episode behind the end of the present one.
        filled = t[:-1] < length  # (T, B)
        avail_actions[t > length] = True
        reward[~filled] = 0
        arrays = (
            obs,
            state,
            avail_actions,
            actions.astype(np.int64),
            reward,
            terminated & filled,
            truncated & filled,
            filled,
        )
        return Batch(*map(torch.from_numpy, arrays))

    def written(self, array: np.ndarray) -> np.ndarray:
        """(slots, array's time) bool: which steps of the array belong to an episode."""
        extra = array.shape[1] - self.episode_limit  # 1 for arrays with a last observation
        return np.arange(array.shape[1]) < (self.length + extra)[:, None]


def available_memory() -> int | None:
    """Bytes that can still be used; all of the machine's where only that is known; or None."""
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
        return None
