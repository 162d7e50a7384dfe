"""How fast QMIX (https://arxiv.org/abs/1803.11485) runs here, on this machine, part by part.

    python -m extras.benchmark                                  # all parts, some minutes
    python -m extras.benchmark --quick --parts gradient acting
    python -m extras.benchmark --pymarl ~/pymarl                # theirs beside ours (needs pyyaml)
    python -m extras.benchmark --jaxmarl ~/JaxMARL              # (needs jax, flax and optax)
    python -m extras.benchmark --parts gradient --device cuda --jaxmarl ~/JaxMARL  # (jax[cuda13])

What is compared takes turns, and medians are printed: so other work on the machine slows both.
Only `train` plays one after the other.

Shapes: E battles, B episodes in a batch, T steps, N agents, A actions, O observation, S state.
"""

import argparse
import csv
import importlib.util
import os
import resource
import subprocess
import sys
import tempfile
import time
import types
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from agent import Players
from buffer import DONE, Batch, ReplayBuffer
from extras.flags import Parser, number
from extras.threads import share_out
from learner import QLearner
from mixer import MIXERS
from starcraft.maps import MAPS
from starcraft.simulator import BattleSim, StarCraft2Env, random_actions
from train import make_agent, parse_args

PARTS = ("simulator", "acting", "gradient", "train", "memory")
PYMARL_LEARNER = "src/learners/q_learner.py"
JAXMARL_QMIX = "baselines/QLearning/qmix_rnn.py"
IN_A_ROW = 5  # calls of one function that are timed before the next one's
HERE = Path(__file__).resolve().parents[1]


def medians(seconds, **functions):
    """Seconds per call of each function. They take turns until `seconds` have passed, some calls at
    a time, as training makes them. The first of these does not count: threads of the function
    before may still spin, waiting for more work. (A pause instead slows down what comes after it:
    the processor has to wake up.)"""
    times = {name: [] for name in functions}
    for function in functions.values():
        function()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not all(times.values()):
        for name, function in functions.items():
            for call in range(1 + IN_A_ROW):
                begun = time.perf_counter()
                function()
                if call:
                    times[name].append(time.perf_counter() - begun)
    return {name: float(np.median(values)) for name, values in times.items()}


def play(env, buffer, episodes, rng):
    """Random battles, stored in the buffer, until so many have ended."""
    ended = 0
    env.reset()
    while ended < episodes:
        buffer.see(env.obs, env.state, env.avail_actions)
        actions = random_actions(env.avail_actions, rng)
        step = env.step(actions)
        over = step.terminated | step.truncated
        buffer.add(actions, step.reward, step.terminated, step.truncated)
        buffer.close(over, env.obs, env.state, env.avail_actions)
        env.reset(over)
        ended += int(over.sum())


def networks(env):
    """Those of train.py with its defaults, on the CPU."""
    torch.manual_seed(0)
    agent = make_agent(parse_args([])[0], env)
    return agent, MIXERS["qmix"](env.n_agents, env.state_dim)


def our_learner(env, threads, device="cpu"):
    agent, mixer = (network.to(device) for network in networks(env))
    learner = QLearner(agent, mixer, optimiser="adam")
    if device == "cpu":
        share_out(learner, threads)
    return learner


def update(learner, batch):
    float(learner.update(batch)["loss"])  # reading it waits for the device


def as_float64(batch):
    return Batch(
        *(x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in batch)
    )


def padded(batch):
    """The batch as others have it, time first: (T + 1, B, ...) what is seen, (T, B, ...) what is
    done, filled (T, B) bool. After an episode's end all actions are available, all else is 0."""
    B = batch.sizes[0]
    there = torch.arange(B) < torch.tensor(batch.sizes)[:, None]  # (T + 1, B)
    columns = {"filled": there[1:]}
    for name in (*DONE, "obs", "state", "avail_actions", "last_actions"):
        x, mask = getattr(batch, name), there[1:] if name in DONE else there
        columns[name] = x.new_full((*mask.shape, *x.shape[1:]), name == "avail_actions")
        columns[name][mask] = x
    return SimpleNamespace(**columns)


def all_steps(padded):
    """The padding as if it were steps: what a learner does that cannot leave it out."""
    (T, B), columns = padded.filled.shape, vars(padded)
    rows = {name: x.flatten(0, 1) for name, x in columns.items() if name != "filled"}
    return Batch(**rows, acted=torch.arange(T * B), sizes=[B] * (T + 1))


def replay(map_name, episodes):
    """A simulator, and the replay of so many random battles."""
    env, rng = BattleSim(map_name, n_envs=16, seed=1), np.random.default_rng(0)
    sizes = env.episode_limit, env.n_agents, env.n_actions, env.obs_dim, env.state_dim
    buffer = ReplayBuffer(episodes, env.n_envs, *sizes)
    play(env, buffer, episodes, rng)
    return env, buffer


# ---- The parts -------------------------------------------------------


def simulator(args):
    print("\nsimulator, random actions: env steps/s, all battles together")
    rng = np.random.default_rng(0)
    for map_name in args.maps:
        steps = {}
        for E in (1, 8, 32):
            env = BattleSim(map_name, n_envs=E, seed=1)
            env.reset()

            def one(env=env):
                step = env.step(random_actions(env.avail_actions, rng))
                env.reset(step.terminated | step.truncated)

            steps[f"{E} battles"] = one
        for name, seconds in medians(args.seconds, **steps).items():
            print(f"  {map_name:12} {name:>10} {int(name.split()[0]) / seconds:10.0f}")


def acting(args):
    print("\nacting (inputs, network, epsilon-greedy): env steps/s, all battles together")
    for map_name in args.maps:
        acts = {}
        for E in (1, 8, 32):
            env = BattleSim(map_name, n_envs=E, seed=1)
            env.reset()
            agent, _ = networks(env)
            players = Players(agent, E, env.n_agents, env.n_actions)
            acts[f"{E} battles"] = partial(players.act, env.obs, env.avail_actions, 0.05)
        for name, seconds in medians(args.seconds, **acts).items():
            print(f"  {map_name:12} {name:>10} {int(name.split()[0]) / seconds:10.0f}")


def gradient(args):
    """`share` is what the matrix products of a step take of all threads' own speed at torch's
    products of one GRU step's size: 100 % would be nothing but these. Not for a GPU, which works
    on several products of a step at once."""
    on_cpu = args.device == "cpu"
    where = f"{args.threads} threads" if on_cpu else torch.cuda.get_device_name()
    print(f"\ngradient step, {where}: T steps, steps/s, GFLOP/s, share of matmul rate")
    for map_name in args.maps:
        env, buffer = replay(map_name, 64 if args.quick else 200)
        for B in (16, 32) if args.quick else (16, 32, 64, 128):
            batch = buffer.sample(B, np.random.default_rng(0))
            our_batch, T = batch.to(args.device), len(batch.sizes) - 1
            double = QLearner(*(network.double() for network in networks(env)))
            exact = as_float64(batch)
            with FlopCounterMode(display=False) as counter:  # sees into torch's own GRU only,
                double.update(exact)  # which is what float64 gets
            learner = our_learner(env, args.threads, args.device)
            rows, H = max(B * env.n_agents // args.threads, 1), 64
            x, w = torch.randn(rows, H), torch.randn(3 * H, H)
            functions = {
                "ours": partial(update, learner, our_batch),
                "matmul": lambda x=x, w=w: [x @ w.T for _ in range(100)],
            }
            if on_cpu:
                functions["one thread"] = partial(update, our_learner(env, 1), batch)
            if args.pymarl:
                theirs = pymarl_learner(args.pymarl, env)
                their_batch = pymarl_batch(padded(batch), env)

                def pymarl(learner=theirs, batch=their_batch):
                    torch.set_num_threads(args.threads)
                    learner.train(batch, 0, 0)
                    torch.set_num_threads(1)

                functions["PyMARL"] = pymarl
            if args.jaxmarl:  # does the padding too, and so must our step beside it
                full = all_steps(padded(batch)).to(args.device)
                functions["ours, all steps"] = partial(update, learner, full)
                functions["JaxMARL"] = jaxmarl_step(args.jaxmarl, padded(batch), env)
            seconds = medians(args.seconds, **functions)
            rate = 100 * 2 * rows * H * 3 * H / seconds.pop("matmul")
            for name, value in seconds.items():
                text = f"  {map_name:12} B {B:3} T {T:3} {name:>14} {1 / value:7.1f}"
                if name in ("ours", "one thread"):
                    flops = counter.get_total_flops() / value
                    threads = args.threads if name == "ours" else 1
                    text += f" {flops / 1e9:6.0f}"
                    text += f" {flops / rate / threads:6.0%}" if on_cpu else ""
                if not name.startswith("ours"):
                    beside = seconds["ours, all steps" if name == "JaxMARL" else "ours"]
                    text += f"  ours is {value / beside:.2f} x"
                print(text)


def train(args):
    """Ours by train.py in a process of its own; PyMARL's loop here, one episode at a time. Both
    test with 32 episodes every 10,000 steps."""
    steps = 11_000 if args.quick else 400_000
    print(f"\nend to end on {args.maps[0]}: env steps/s, first test with 90 % won")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(HERE / "train.py"), "--env", "sim", "--map", args.maps[0]]
        command += ["--steps", str(steps), "--threads", str(args.threads), "--device", args.device]
        done = subprocess.run([*command, "--run-dir", f"{folder}/run"], capture_output=True)
        if done.returncode:
            said = done.stderr.decode().strip() or f"exit status {done.returncode}"
            raise ValueError(f"train.py failed: {said.splitlines()[-1]}")
        with open(f"{folder}/run/metrics.csv") as file:
            rows = [{k: float(v or 0) for k, v in row.items()} for row in csv.DictReader(file)]
    speed, seconds = rows[-1]["t_env"] / rows[-1]["wall_time"], rows[-1]["wall_time"]
    won = next((row for row in rows if row["test_win_rate"] >= 0.9), None)
    when = "never"
    if won:
        when, seconds = f"{won['wall_time']:.0f} s, {won['t_env']:.0f} steps", won["wall_time"]
    print(f"  ours   {speed:8.0f}  {when}", flush=True)
    if args.pymarl:
        torch.set_num_threads(args.threads)
        print("  PyMARL " + pymarl_loop(args.pymarl, args.maps[0], 10 * seconds))
        torch.set_num_threads(1)


def memory(args):
    """A process of its own for each map, so that each has its own peak."""
    episodes = 300 if args.quick else 5000
    print(f"\nmemory: a buffer with {episodes} random episodes, and three gradient steps on 64")
    for map_name in args.maps:
        command = [sys.executable, "-m", "extras.benchmark", "--fill", str(episodes)]
        command += ["--maps", map_name, "--threads", str(args.threads)]
        subprocess.run(command, check=True, cwd=HERE)


def peak_memory():
    """The most bytes this process had resident. Linux's getrusage will not do: it begins with the
    peak of the process that started this one."""
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def fill(args):
    """What `memory` starts."""
    env, buffer = replay(args.maps[0], args.fill)
    learner = our_learner(env, args.threads)
    for _ in range(3):
        learner.update(buffer.sample(64, np.random.default_rng(0)))
    print(f"  {args.maps[0]:12} {len(buffer)} episodes, peak {peak_memory() / 1e9:.2f} GB resident")


# ---- PyMARL, from a checkout that is left as it is ---------------------


def pymarl_args(path, env, map_name="2s3z", **changed):
    """Their defaults for QMIX, but for what is changed. Their package `envs` wants StarCraft II:
    ours stands in for it."""
    import yaml

    source = path / "src"
    if str(source) not in sys.path:
        warnings.filterwarnings(
            "ignore", category=UserWarning
        )  # on what they ask of an older torch
        sys.path.insert(0, str(source))
        sys.modules["envs"] = types.ModuleType("envs")
        sys.modules["envs"].REGISTRY = {"sc2": StarCraft2Env}
    values = {}
    for name in ("default", "algs/qmix", "envs/sc2"):
        values |= yaml.safe_load((source / "config" / f"{name}.yaml").read_text())
    values["env_args"] |= {"map_name": map_name, "seed": 1}
    values |= {"device": "cpu", "use_cuda": False}
    values |= {"n_agents": env.n_agents, "n_actions": env.n_actions, "state_shape": env.state_dim}
    return SimpleNamespace(**values | changed)


def pymarl_logger(stats):
    def log_stat(name, value, _t_env):
        stats[name] = value

    return SimpleNamespace(log_stat=log_stat, console_logger=SimpleNamespace(info=lambda *_: None))


def pymarl_scheme(env):
    return {
        "state": {"vshape": env.state_dim},
        "obs": {"vshape": env.obs_dim, "group": "agents"},
        "actions": {"vshape": (1,), "group": "agents", "dtype": torch.long},
        "avail_actions": {"vshape": (env.n_actions,), "group": "agents", "dtype": torch.int},
        "reward": {"vshape": (1,)},
        "terminated": {"vshape": (1,), "dtype": torch.uint8},
    }


def pymarl_parts(path, env, map_name="2s3z", **changed):
    args = pymarl_args(path, env, map_name, **changed)
    from components.transforms import OneHot
    from controllers import REGISTRY as CONTROLLERS
    from learners import REGISTRY as LEARNERS

    preprocess = {"actions": ("actions_onehot", [OneHot(out_dim=env.n_actions)])}
    scheme = pymarl_scheme(env)
    encoded = scheme | {"actions_onehot": {"vshape": (env.n_actions,), "group": "agents"}}
    controller = CONTROLLERS[args.mac](encoded, {"agents": env.n_agents}, args)
    learner = LEARNERS[args.learner](controller, encoded, pymarl_logger({}), args)
    return args, scheme, preprocess, controller, learner


def pymarl_learner(path, env):
    *_, learner = pymarl_parts(path, env)
    learner.log_stats_t = 10**9  # no logging in the steps that are timed
    return learner


def pymarl_batch(batch, env):
    """Our batch as their EpisodeBatch: batch first, T + 1 steps of everything."""
    from components.episode_buffer import EpisodeBatch
    from components.transforms import OneHot

    T, B, _ = batch.actions.shape
    preprocess = {"actions": ("actions_onehot", [OneHot(out_dim=env.n_actions)])}
    groups = {"agents": env.n_agents}
    theirs = EpisodeBatch(pymarl_scheme(env), groups, B, T + 1, preprocess=preprocess)
    real = torch.cat((torch.ones_like(batch.filled[:1]), batch.filled))  # (T + 1, B)

    def first(x):
        return x.transpose(0, 1)  # (T, B, ...) -> (B, T, ...)

    steps = {"obs": batch.obs, "state": batch.state, "avail_actions": batch.avail_actions}
    theirs.update({name: first(x) for name, x in steps.items()}, ts=slice(0, T + 1))
    ended = (batch.terminated | batch.truncated).unsqueeze(-1)
    steps = {"actions": batch.actions.unsqueeze(-1), "reward": batch.reward.unsqueeze(-1)}
    steps["terminated"] = ended
    theirs.update({name: first(x) for name, x in steps.items()}, ts=slice(0, T))
    theirs.data.transition_data["filled"][:] = first(real).unsqueeze(-1)
    return theirs


def pymarl_loop(path, map_name, seconds):
    """Their runner, buffer and learner in the order of their run_sequential, at most so long."""
    env, stats = BattleSim(map_name, n_envs=1, seed=1), {}
    args, scheme, preprocess, controller, learner = pymarl_parts(path, env, map_name)
    from components.episode_buffer import ReplayBuffer as TheirBuffer
    from runners import REGISTRY as RUNNERS

    groups, length = {"agents": env.n_agents}, env.episode_limit + 1
    buffer = TheirBuffer(scheme, groups, args.buffer_size, length, preprocess=preprocess)
    runner = RUNNERS[args.runner](args, pymarl_logger(stats))
    runner.setup(scheme=scheme, groups=groups, preprocess=preprocess, mac=controller)
    begun, episode, tested, best = time.perf_counter(), 0, 0, 0.0
    while best < 0.9 and time.perf_counter() - begun < seconds:
        buffer.insert_episode_batch(runner.run(test_mode=False))
        if buffer.can_sample(args.batch_size):
            sample = buffer.sample(args.batch_size)
            learner.train(sample[:, : sample.max_t_filled()], runner.t_env, episode)
        episode += 1
        if runner.t_env - tested >= args.test_interval:
            tested = runner.t_env
            for _ in range(args.test_nepisode):
                runner.run(test_mode=True)
            best = max(best, stats["test_battle_won_mean"])
    took = time.perf_counter() - begun
    found = f"best test {best:.2f} in {took:.0f} s, {runner.t_env} steps"
    return f"{runner.t_env / took:8.0f}  {found}"


# ---- JaxMARL, from a checkout that is left as it is ---------------------


def jaxmarl_step(path, batch, env):
    """A call of what this returns is one gradient step, jitted, with our widths: networks and
    optimiser are theirs, the loss is rewritten from the one inside their make_train."""
    import jax
    import jax.numpy as jnp
    import optax

    unused = ("chex", "flashbax", "hydra", "omegaconf", "wandb", "jaxmarl", "jaxmarl.environments")
    unused += ("jaxmarl.environments.overcooked", "jaxmarl.environments.smax")
    unused += ("jaxmarl.wrappers", "jaxmarl.wrappers.baselines")
    spec = importlib.util.spec_from_file_location("qmix_rnn", path / JAXMARL_QMIX)
    theirs = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in unused}):
        spec.loader.exec_module(theirs)

    (T, B), N, H = batch.filled.shape, env.n_agents, 64
    agent_ids = torch.eye(N).expand(T, B, N, N)
    obs = torch.cat((batch.obs[:T], agent_ids), dim=-1)  # (T, B, N, O + N) as their wrapper does
    obs, avail_actions, actions = (  # (T, B, N, ...) -> (N, T, B, ...)
        jnp.array(x.movedim(2, 0).numpy()) for x in (obs, batch.avail_actions[:T], batch.actions)
    )
    state, reward, ended = (
        jnp.array(x.numpy()) for x in (batch.state[:T], batch.reward, batch.terminated)
    )
    resets, start = jnp.zeros((N, T, B), bool), jnp.zeros((N, B, H))
    data = obs, avail_actions, actions, state, reward, ended  # arguments, or jit would fold them
    agent = theirs.RNNQNetwork(env.n_actions, H)
    mixer = theirs.MixingNetwork(32, H, 0.001)
    key = jax.random.PRNGKey(0)
    params = {
        "agent": agent.init(key, start[0], obs[0], resets[0]),
        "mixer": mixer.init(key, jnp.zeros((N, T, B)), state),
    }
    optimiser = optax.chain(optax.clip_by_global_norm(10), optax.radam(5e-5))

    def unroll(params, obs):
        return jax.vmap(agent.apply, (None, 0, 0, 0))(params["agent"], start, obs, resets)[1]

    def pick(agent_qs, actions):
        return jnp.take_along_axis(agent_qs, actions[..., None], axis=-1)[..., 0]  # (N, T, B)

    def loss(params, target, obs, avail_actions, actions, state, reward, ended):
        agent_qs = unroll(params, obs)  # (N, T, B, A)
        best = jnp.argmax(jnp.where(avail_actions, agent_qs, -1e10), axis=-1)
        after = mixer.apply(target["mixer"], pick(unroll(target, obs), best), state)[1:]
        wanted = reward[:-1] + 0.99 * (1 - ended[:-1]) * after
        q_tot = mixer.apply(params["mixer"], pick(agent_qs, actions), state)[:-1]
        return jnp.mean((q_tot - jax.lax.stop_gradient(wanted)) ** 2)

    @jax.jit
    def step(params, memory, target, *data):
        value, gradient = jax.value_and_grad(loss)(params, target, *data)
        change, memory = optimiser.update(gradient, memory, params)
        return optax.apply_updates(params, change), memory, value

    now = [params, optimiser.init(params)]

    def one():
        *now[:], value = step(*now, params, *data)
        value.block_until_ready()

    return one


def main():
    parser = Parser(prog="benchmark.py", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--maps", nargs="+", default=["2s3z"], metavar="NAME", help="SMAC maps")
    threads = number(int, 1, 64)
    parser.add_argument("--threads", type=threads, default=2, help="of a gradient step")
    what = "of our learner in gradient and train, and of JaxMARL's; all else is on the CPU"
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=what)
    parser.add_argument("--quick", action="store_true", help="shorter and rougher")
    parser.add_argument("--pymarl", type=Path, metavar="PATH", help="a checkout to compare with")
    parser.add_argument("--jaxmarl", type=Path, metavar="PATH", help="the same")
    parser.add_argument("--fill", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.seconds = 2.0 if args.quick else 10.0
    for name in args.maps:
        if name not in MAPS:
            parser.error(f"unknown map {name!r}: choose from {', '.join(MAPS)}")
    if args.device == "cuda":
        args.threads = 1  # threads share out a CPU's work
        if not torch.cuda.is_available():
            parser.error("--device cuda: torch finds no CUDA device here, use --device cpu")
        if args.pymarl:
            parser.error("--pymarl is measured on the CPU: leave out --device cuda")
    if args.pymarl and not (args.pymarl / PYMARL_LEARNER).is_file():
        parser.error(f"--pymarl {args.pymarl}: no PyMARL checkout, it has no {PYMARL_LEARNER}")
    if args.jaxmarl and not (args.jaxmarl / JAXMARL_QMIX).is_file():
        parser.error(f"--jaxmarl {args.jaxmarl}: no JaxMARL checkout, it has no {JAXMARL_QMIX}")
    try:
        if args.pymarl:
            import yaml  # noqa: F401
        if args.jaxmarl:
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else all of a GPU
            import flax  # noqa: F401
            import jax
            import optax  # noqa: F401

            if (jax.default_backend() == "cpu") != (args.device == "cpu"):
                parser.error(
                    f"--device {args.device}, but jax works on {jax.default_backend()}: set the"
                    " variable JAX_PLATFORMS=cpu, or pip install jax[cuda13]"
                )
            print(f"jax {jax.__version__} on {jax.default_backend()}, ", end="")
        if args.fill:
            return fill(args)
        print(f"torch {torch.__version__}", flush=True)
        torch.set_num_threads(1)  # as train.py does; theirs is measured with --threads
        for name in PARTS:
            if name in args.parts:
                globals()[name](args)
                sys.stdout.flush()
    except ImportError as error:
        parser.error(f"the package {error.name} is missing: pip install pyyaml jax flax optax")
    except (ValueError, subprocess.CalledProcessError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
