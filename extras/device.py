"""Where the networks of QMIX (https://arxiv.org/abs/1803.11485) learn: on the CPU or on the GPU.

Not a script. See it at work: python train.py --device auto
"""

import time

import torch

from buffer import Batch


def choose_device(args, env, make_learner=None) -> str:
    """What --device says; for "auto" where a gradient step on episodes of half the time limit is
    done sooner, "cpu" or "cuda": the networks are so small that it is not always the GPU.

    make_learner(args, env, device) -> a QLearner. Raises ValueError where CUDA is asked for and not
    there.
    """
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device here, use --device cpu")
    if args.device != "auto":
        return args.device
    if not torch.cuda.is_available():
        return "cpu"
    T, B, N, A = -(-env.episode_limit // 2), args.batch_size, env.n_agents, env.n_actions
    P, F = (T + 1) * B, T * B
    last = torch.arange(F) >= F - B
    batch = Batch(
        obs=torch.rand(P, N, env.obs_dim),
        last_actions=torch.full((P, N), -1),
        state=torch.rand(P, env.state_dim),
        avail_actions=torch.ones(P, N, A, dtype=torch.bool),
        actions=torch.zeros(F, N, dtype=torch.int64),
        reward=torch.rand(F),
        terminated=last,
        truncated=torch.zeros_like(last),
        acted=torch.arange(F),
        sizes=[B] * (T + 1),
    )
    seconds = {}
    for device in ("cpu", "cuda"):
        learner = make_learner(args, env, device)
        for _ in range(4):  # the first ones are slow; the last one counts
            begun = time.perf_counter()
            float(learner.update(batch.to(device))["loss"])  # reading it waits for the device
            seconds[device] = time.perf_counter() - begun
    took = ", ".join(f"{value:.3f} s on {device}" for device, value in seconds.items())
    print(f"--device auto: a gradient step takes {took}")
    return min(seconds, key=seconds.get)
