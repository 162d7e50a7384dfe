"""What a trained network of QMIX (https://arxiv.org/abs/1803.11485) is worth: greedy episodes.

Not a script: python train.py --evaluate RUN_DIR --test-episodes 256
"""

from extras.device import choose_device
from extras.files import load_checkpoint, load_weights, read_config


def evaluate(args, env, agent, play_episodes) -> int:
    """Print the win rate of the network of args.evaluate in `env`, its own or another one.

    agent: one of the run's sizes. play_episodes: train.py's. Returns the exit status. Raises
    ValueError, one line, where the network does not fit.
    """
    if args.save_replay and not hasattr(env, "save_replay"):
        raise ValueError(f"--save-replay: {env.name} has no replay files, only --env sc2 has")
    agent = agent.to("cpu" if args.device == "auto" else choose_device(args, env))
    state, _, warning = load_checkpoint(args.evaluate)
    load_weights(agent, state["learner"]["agent"])
    result = play_episodes(agent, env, args.test_episodes)
    if args.save_replay:
        for path in env.save_replay(args.evaluate / "replays"):
            print(f"replay: {path}")
    env.close()
    if warning:
        print(warning)
    trained_on = read_config(args.evaluate)["env"]["name"]
    if trained_on != env.name:
        print(f"Trained on {trained_on}, played on {env.name} ({getattr(env, 'version', '')}).")
    print(
        f"test_win_rate={result['test_win_rate']:.3f} test_return={result['test_return']:.1f}"
        f" episodes={args.test_episodes}"
    )
    return 0
