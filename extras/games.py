"""Environments that need packages of their own, for train.py's --env.

Not a script: python train.py --env pettingzoo:mpe2.simple_spread_v3:parallel_env --steps 200000
"""


def pettingzoo(map_name, n_envs, seed, **options):
    """Games of any pettingzoo.ParallelEnv with discrete actions; map_name: MODULE:FACTORY of it."""
    try:
        from extras.pettingzoo_env import PettingZooEnvs
    except ImportError as error:
        raise ValueError(str(error)) from None
    return PettingZooEnvs(map_name, n_envs, seed, **options)
