"""Is QMIX (https://arxiv.org/abs/1803.11485) here the one of PyMARL, its authors' code?

    pip install pyyaml
    python -m extras.same_as_pymarl ~/pymarl                # a checkout, which is left as it is
    python -m extras.same_as_pymarl ~/pymarl --maps 3s5z --steps 500

PyMARL's own learner and that of `train.py --paper` begin with the same weights and take the same
number of gradient steps on the same batches of random battles: how far apart are they then? All
that learning consists of is in it: inputs, mixer, double Q-learning, targets, what is masked,
clipping, RMSprop, target network. In 64 bits, because rounding is soon amplified: another best
action, another target; so the GRU is torch's here, not the compiled one, which has tests of its
own. Exit status 1 if they differ by more than rounding.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from extras.benchmark import (
    PYMARL_LEARNER,
    as_float64,
    padded,
    pymarl_batch,
    pymarl_parts,
    replay,
)
from extras.flags import Parser, number
from starcraft.maps import MAPS
from train import make_learner, parse_args

COPY = 5  # gradient steps from one copy to the target network to the next
GAMMA = 127 / 128  # as good as 0.99, and exact in the 32 bits in which PyMARL multiplies it
ROUNDING = 1e-10
NAMES = {"hyper_w_1": "w1", "hyper_w_final": "w_final", "hyper_b_1": "b1", "V": "v"}  # of modules


def renamed(agent, mixer):
    """PyMARL's weights under our names: those of the agent, those of the mixer."""
    ours = {f"{key}_l0" if "rnn" in key else key: x for key, x in agent.state_dict().items()}
    named = {}
    for key, x in mixer.state_dict().items() if mixer else ():
        module, rest = key.split(".", 1)  # "hyper_w_1", "0.weight"
        named[f"{NAMES[module]}.{rest}"] = x
    return ours, named


def vector(agent, mixer):
    return torch.cat([x.flatten() for weights in (agent, mixer) for x in weights.values()])


def compare(path, map_name, kind, steps):
    """(loss of the last step, how far a weight has moved at most, by how much two differ)."""
    env, buffer = replay(map_name, 64)
    changed = {"mixer": None if kind == "iql" else kind, "gamma": GAMMA}
    changed["target_update_interval"] = COPY
    torch.manual_seed(0)
    *_, controller, theirs = pymarl_parts(path, env, map_name, **changed)
    theirs.log_stats_t = 10**9  # it logs nothing
    flags = ["--paper", "--mixer", kind, "--gamma", str(GAMMA), "--threads", "1"]
    learner = make_learner(parse_args(flags)[0], env, "cpu")
    agent, mixer = renamed(controller.agent, theirs.mixer)
    learner.agent.load_state_dict(agent)
    if learner.mixer:
        learner.mixer.load_state_dict(mixer)
    learner.sync_target()
    begin, rng = vector(agent, mixer), np.random.default_rng(0)
    for step in range(steps):
        batch = buffer.sample(32, rng)
        same = pymarl_batch(padded(batch), env)
        for name, x in same.data.transition_data.items():
            same.data.transition_data[name] = x.double() if x.is_floating_point() else x
        theirs.train(same, t_env=0, episode_num=step)
        loss = float(learner.update(as_float64(batch))["loss"])
        if step and step % COPY == 0:
            learner.sync_target()
    end = vector(*renamed(controller.agent, theirs.mixer))
    ours = learner.agent.state_dict() | (learner.mixer.state_dict() if mixer else {})
    ours = torch.cat([ours[key].flatten() for key in (*agent, *mixer)])
    return loss, (end - begin).abs().max().item(), (end - ours).abs().max().item()


def main(argv=None):
    """Returns the exit status: 1 if anything differs by more than rounding."""
    parser = Parser(prog="same_as_pymarl.py", description=__doc__.splitlines()[0])
    parser.add_argument("pymarl", type=Path, metavar="PATH", help="a checkout of oxwhirl/pymarl")
    parser.add_argument("--maps", nargs="+", default=["2s3z", "MMM2"], choices=MAPS, metavar="MAP")
    parser.add_argument("--steps", type=number(int, 1, 10**6), default=30)
    args = parser.parse_args(argv)
    if not (args.pymarl / PYMARL_LEARNER).is_file():
        parser.error(f"{args.pymarl} is no PyMARL checkout, it has no {PYMARL_LEARNER}")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    print(f"{args.steps} gradient steps: largest change of a weight, largest difference of two")
    same = True
    try:
        for map_name in args.maps:
            for kind in ("qmix", "vdn", "iql"):
                loss, moved, apart = compare(args.pymarl, map_name, kind, args.steps)
                same &= apart < ROUNDING
                print(f"  {map_name:12} {kind:5} loss {loss:.5f}  {moved:.1e}  {apart:.1e}")
    except ImportError as error:
        package = {"yaml": "pyyaml"}.get(error.name, error.name)
        parser.error(f"PyMARL cannot be imported ({error}): pip install {package}")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
