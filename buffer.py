"""Replay of whole episodes for recurrent Q-learning, as in QMIX (https://arxiv.org/abs/1803.11485).

A batch of episodes is packed, not padded: its rows are all first steps, then all second steps, ...

    episode a: a0 a1 a2 a3   (3 steps, 4 observations)      longest first
    episode b: b0 b1 b2
    episode c: c0 c1
    rows               a0 b0 c0 | a1 b1 c1 | a2 b2 | a3     P = 9, sizes [3, 3, 2, 1]
    acted on           a0 b0 c0   a1 b1      a2             F = 6
    one step later     a1 b1 c1   a2 b2      a3             all rows but the first B = 3

Not a script. See it at work: python train.py --map 2s3z

Shapes: E environments, B episodes in a batch, P observations and F steps in them, N agents,
        A actions, O observation, S state, T steps of an episode, L the most that it can have.
"""

from typing import NamedTuple

import numpy as np
import torch

SEEN = ("obs", "state", "avail_actions")  # an episode has them once more, after its last step
DONE = ("actions", "reward", "terminated", "truncated")


class Batch(NamedTuple):
    """B whole episodes. Step f acted on row acted[f] and led to row B + f.

    The last step of each episode, and no other, is terminated or truncated.
    """

    obs: torch.Tensor  # (P, N, O) float32
    last_actions: torch.Tensor  # (P, N) int64, -1 in the first B rows
    state: torch.Tensor  # (P, S) float32
    avail_actions: torch.Tensor  # (P, N, A) bool
    actions: torch.Tensor  # (F, N) int64
    reward: torch.Tensor  # (F,) float32
    terminated: torch.Tensor  # (F,) bool: the episode ended here, by the rules of the game
    truncated: torch.Tensor  # (F,) bool: the episode was cut here, by the time limit
    acted: torch.Tensor  # (F,) int64
    sizes: list[int]  # how many episodes have an observation at step 0, 1, ...; sizes[0] is B

    def to(self, device) -> "Batch":
        return Batch(*(x.to(device) if torch.is_tensor(x) else x for x in self))


class ReplayBuffer:
    """The last `capacity` finished episodes, and a running one for each of n_envs environments.

    Finished ones are kept without zeros (of the dead, the unseen, one-hot actions), which are most
    of the numbers on large maps. The oldest go sooner where all would take more than `room` bytes.
    Raises ValueError if not even a tenth of a buffer of the longest episodes would fit into that.
    """

    def __init__(
        self, capacity, n_envs, episode_limit, n_agents, n_actions, obs_dim, state_dim, room=np.inf
    ):
        E, L, f32 = n_envs, episode_limit, np.float32
        self.capacity, self.episode_limit, self.room = capacity, episode_limit, room
        self.running = {
            "obs": np.zeros((E, L + 1, n_agents, obs_dim), f32),
            "state": np.zeros((E, L + 1, state_dim), f32),
            "avail_actions": np.zeros((E, L + 1, n_agents, n_actions), bool),
            "actions": np.zeros((E, L + 1, n_agents), np.int16),
            "reward": np.zeros((E, L + 1), f32),
            "terminated": np.zeros((E, L + 1), bool),
            "truncated": np.zeros((E, L + 1), bool),
        }
        self.steps = np.zeros(n_envs, np.int64)  # (E,) of each running episode, so far
        self.episodes, self.held = [], 0  # oldest first, as `close` makes them; bytes in them
        # Bytes if all were as long as they can be, without zeros: each number costs a bit besides,
        # which is at most an eighth more.
        self.nbytes = (capacity + n_envs) * size(self.running) // n_envs * 9 // 8
        if self.nbytes > 10 * room:
            raise ValueError(
                f"a replay buffer of {capacity} episodes can grow to {self.nbytes / 1e9:.1f} GB,"
                f" over ten times what it may take here, {room / 1e9:.1f} GB: reduce --buffer-size"
            )

    def __len__(self) -> int:
        """How many finished episodes are stored."""
        return len(self.episodes)

    def see(self, obs, state, avail_actions) -> None:
        """What all E environments show now, before the step: (E, N, O), (E, S), (E, N, A)."""
        for name, value in zip(SEEN, (obs, state, avail_actions), strict=True):
            self.running[name][np.arange(len(self.steps)), self.steps] = value

    def add(self, actions, reward, terminated, truncated) -> None:
        """What was done, (E, N), and what came of it, (E,) each: the step that `see` began. Raises
        RuntimeError after episode_limit steps."""
        if self.steps.max() >= self.episode_limit:
            raise RuntimeError(f"an episode is longer than {self.episode_limit}, the episode_limit")
        for name, value in zip(DONE, (actions, reward, terminated, truncated), strict=True):
            self.running[name][np.arange(len(self.steps)), self.steps] = value
        self.steps += 1

    def close(self, ended, obs, state, avail_actions) -> None:
        """Store the episodes of the environments in `ended` (E,) bool, with what these show after
        their last step."""
        self.see(obs, state, avail_actions)
        for env in np.flatnonzero(ended):
            T = self.steps[env]
            episode = {name: self.running[name][env, :T].copy() for name in DONE}
            for name in SEEN:
                x = self.running[name][env, : T + 1]
                episode[name], episode[name + "_bits"] = leave_out_zeros(x)
            self.append(episode)
        self.steps[ended] = 0

    def append(self, episode: dict) -> None:
        """Store a finished episode; the oldest make room."""
        self.episodes.append(episode)
        self.held += size(episode)
        while len(self.episodes) > self.capacity or self.held > self.room:
            self.held -= size(self.episodes.pop(0))

    def drop(self, mask) -> None:
        """Forget the running episodes of the environments in mask (E,) bool."""
        self.steps[mask] = 0

    def sample(self, batch_size: int, rng: np.random.Generator) -> Batch:
        """batch_size different episodes, all equally likely. Raises ValueError if it has fewer."""
        chosen = [self.episodes[i] for i in rng.choice(len(self), batch_size, replace=False)]
        chosen.sort(key=lambda episode: len(episode["reward"]), reverse=True)
        steps = np.array([len(episode["reward"]) for episode in chosen])  # (B,)
        t = np.arange(steps[0] + 1)[:, None]  # (T + 1, 1)
        sizes = (t <= steps).sum(axis=1)  # (T + 1,) episodes with an observation at step t
        first = sizes.cumsum() - sizes  # (T + 1,) the row at which step t begins
        batch = {
            name: np.empty((sum(sizes if name in SEEN else steps), *x.shape[2:]), x.dtype)
            for name, x in self.running.items()
        }
        for b, episode in enumerate(chosen):
            rows = first[: steps[b] + 1] + b  # of its observations; row - B is the step before it
            for name in SEEN:
                shape = (len(rows), *batch[name].shape[1:])
                batch[name][rows] = put_zeros_back(episode[name], episode[name + "_bits"], shape)
            for name in DONE:
                batch[name][rows[1:] - batch_size] = episode[name]
        batch["actions"] = actions = batch["actions"].astype(np.int64)  # (F, N)
        # (B, N) and (F, N) -> (P, N)
        batch["last_actions"] = np.concatenate((np.full_like(actions[:batch_size], -1), actions))
        # (T + 1, B) at the mask -> (P,), the rows: which of them does a step follow? (F,)
        batch["acted"] = np.flatnonzero((t < steps)[t <= steps])
        return Batch(sizes=sizes.tolist(), **{k: torch.from_numpy(x) for k, x in batch.items()})


def size(arrays: dict) -> int:
    """Bytes in all of them."""
    return sum(array.nbytes for array in arrays.values())


def leave_out_zeros(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All numbers of x that are not 0, row by row, and a bit for each number: is it one of them?"""
    there = x != 0
    return x[there], np.packbits(there)  # eight to a byte


def put_zeros_back(values: np.ndarray, bits: np.ndarray, shape: tuple) -> np.ndarray:
    """The array of this shape from which leave_out_zeros made `values` and `bits`."""
    x = np.zeros(shape, values.dtype)
    x[np.unpackbits(bits, count=x.size).reshape(shape) == 1] = values
    return x
