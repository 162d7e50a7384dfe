"""StarCraft II in Ray actors: what it shows, what a lost machine costs, what is left behind.

QMIX (https://arxiv.org/abs/1803.11485). The games are the simulator's drop-in class, as in
test_sc2.py; the machines are those of ray.cluster_utils, all on this one.

    python -m pytest starcraft/test_ray_sc2.py
"""

import contextlib
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from multiprocessing.connection import wait
from types import SimpleNamespace

import numpy as np
import pytest

from .simulator import StarCraft2Env, random_actions
from .test_sc2 import FaultyGame, interrupted, noted, play, play_beside, wait_until_gone

pytest.importorskip("ray", reason="Ray is not installed: pip install ray==2.60.0")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray
from ray.cluster_utils import Cluster

from . import ray_sc2
from .ray_sc2 import Host, Line, Machine, RaySMAC, travels

LITTLE = {"object_store_memory": 80 * 2**20}  # bytes


class NotingGame(FaultyGame):
    """Notes the return and the length of every episode that it has played to its end."""

    def reset(self):
        self.total, self.length = 0.0, 0
        return super().reset()

    def step(self, actions):
        reward, over, info = super().step(actions)
        self.total, self.length = self.total + reward, self.length + 1
        if over:
            self.note("episode", f"{self.total:.3f} {self.length}")
        return reward, over, info


@pytest.fixture
def cluster():
    """Two machines of two cores each, of which the first cannot be killed; this program uses it."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **LITTLE})
    cluster.second = cluster.add_node(num_cpus=2, **LITTLE)
    ray.init(cluster.address, log_to_driver=False, logging_level="error")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def games(cluster, tmp_path):
    """games(n_envs, **faults) -> RaySMAC; all processes must be gone at the end."""
    made = []

    def make(n_envs=4, **faults):
        game = partial(NotingGame, folder=tmp_path, **faults)
        made.append(RaySMAC("3m", n_envs, 7, 20.0, cluster.address, 2, game))
        return made[-1]

    make.folder = tmp_path
    yield make
    for env in made:
        env.close()
    assert noted(tmp_path, "pid") and not wait_until_gone(noted(tmp_path, "pid"))


def seen_and_played(env, episodes):
    """Asserts that every return the trainer saw is one that a game has counted. Returns how many
    others the games have played to their end."""
    told = Counter(f"{total:.3f} {length}" for _, total, length in episodes)
    played = Counter(noted(env.make_game.keywords["folder"], "episode"))
    assert told and told <= played
    return (played - told).total()


def test_actors_show_what_the_games_show(games):
    env = games(3)  # two in one actor, one in the other
    alone = [StarCraft2Env("3m", seed=7 + i, continuing_episode=True) for i in range(3)]
    for game in alone:
        game.reset()
    assert (env.n_envs, env.n_agents, env.n_actions, env.obs_dim) == (3, 3, 9, 30)
    assert (env.state_dim, env.episode_limit, env.name) == (48, 60, "sc2")
    play_beside(env, alone, 80)
    with pytest.raises(ValueError, match="environment 2: agent 0 cannot perform action 9"):
        env.step(np.where(np.arange(3)[:, None] == 2, 9, env.avail_actions.argmax(-1)))


def test_faults_and_a_lost_machine(games, cluster):
    env, rng = games(fault="dies", at=30), np.random.default_rng(1)
    episodes, aborts = play(env, 100, rng)
    assert [step[-1].sum() for step in aborts] == [1] and env.restarts == 0  # mended where it runs
    assert seen_and_played(env, episodes) == 0
    cluster.add_node(num_cpus=2, **LITTLE)  # where the lost games can go
    env.reset()
    cluster.remove_node(cluster.second, allow_graceful=False)
    before = noted(games.folder, "pid")
    assert wait([host.line for host in env.hosts], 20)  # the actor lives on for a moment
    more, lost = play(env, 60, rng)
    episodes += more
    assert [step[-1].sum() for step in lost] == [2] and env.restarts == 1
    env.reset()
    after, aborts = play(env, 60, rng)
    assert not aborts
    assert {i for i, *_ in after} == {0, 1, 2, 3}
    assert seen_and_played(env, episodes + after) <= 2
    assert len(wait_until_gone(before, 2)) == 4  # of the actor that was not on that machine
    seeds = noted(games.folder, "seed")
    assert len(seeds) == len(set(seeds)) == 4 + 1 + 2


def test_an_actor_lost_between_two_steps(games):
    """In reset(), which asks only some of its games: the others' episodes are aborted next."""
    env, rng = games(), np.random.default_rng(2)
    for _ in range(5):
        env.step(random_actions(env.avail_actions, rng))
    actions, seen = random_actions(env.avail_actions, rng), env.obs.copy()
    ray.kill(env.hosts[0].actor)
    assert wait([env.hosts[0].line], 20)  # it may live on for a moment
    env.reset(np.arange(4) == 0)
    assert env.restarts == 1 and not env.avail_actions[0, :, 0].any()
    assert (env.obs[1:] == seen[1:]).all()
    actions[0] = env.avail_actions[0].argmax(-1)
    step = env.step(actions)
    assert step.aborted.tolist() == [False, True, False, False]
    assert not env.obs[1].any() and not env.state[1].any() and env.avail_actions[1].all()
    env.reset(step.aborted)
    episodes, aborts = play(env, 60, rng)
    assert episodes and not aborts


@pytest.mark.parametrize("asked", ["step", "reset"])
def test_what_ctrl_c_interrupts_leaves_no_answer_for_the_next(games, monkeypatch, asked):
    """In a notebook, where the same environment goes on."""
    env, rng = games(), np.random.default_rng(4)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(env, "_show", interrupted)
        if asked == "step":
            env.step(env.avail_actions.argmax(-1))
        env.reset()
    if asked == "step":
        with pytest.raises(ValueError, match="is over: reset"):
            env.step(random_actions(env.avail_actions, rng))
    env.reset()
    assert env.restarts == 1 and "Ctrl-C" in env.last_fault
    episodes, aborts = play(env, 80, rng)
    assert not aborts and seen_and_played(env, episodes) == 0


def test_a_machine_without_power_leaves_its_line_open(games):
    env = games()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        true_line = env.hosts[1].line
        env.hosts[1].line = Line(socket.create_connection(silent.getsockname(), 20))
        ray.kill(env.hosts[1].actor)
        step = env.step(env.avail_actions.argmax(-1))
        true_line.close()
    assert step.aborted.tolist() == [False, False, True, True] and env.restarts == 1
    assert "it is gone: ActorDied" in env.last_fault  # and not "no answer in time", much later
    env.reset(step.aborted)
    assert not play(env, 20, np.random.default_rng(3))[1]


class Echo(Machine):
    """Answers what it was told, after some seconds."""

    def __init__(self):
        self.server = socket.create_server(("127.0.0.1", 0))

    def call(self):
        return Line(socket.create_connection(self.server.getsockname(), 20))

    def echo(self, told):
        seconds, words = told
        time.sleep(seconds)
        return words


@pytest.mark.filterwarnings("error")  # of what the thread raises
def test_strangers_are_hung_up_on_unheard(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_sc2, "SHORT", 0.5)
    echo, key, spoilt = Echo(), b"k" * 32, tmp_path / "spoilt"

    class Poison:
        def __reduce__(self):
            return spoilt.touch, ()

    playing = threading.Thread(target=echo.play, args=(key,), daemon=True)
    playing.start()
    with contextlib.closing(echo.call()):  # and says nothing
        for first in (b"", key[:-1], b"x" * 32 + pickle.dumps(("echo", Poison()))):
            stranger = echo.call()
            stranger.socket.sendall(first)
            with pytest.raises((OSError, EOFError)):
                stranger.socket.shutdown(socket.SHUT_WR)
                stranger.receive()
            stranger.close()
        trainer = echo.call()
        trainer.socket.sendall(key)
        time.sleep(2 * ray_sc2.SHORT)  # gradient steps take longer
        trainer.send(("echo", (0, "words")))
        assert trainer.receive() == "words" and not spoilt.exists()
    trainer.socket.sendall(pickle.dumps("echo")[:-1])  # its machine died in the middle
    trainer.close()
    playing.join(20)
    assert not playing.is_alive()


@pytest.mark.filterwarnings("error")
def test_a_line_that_breaks_during_a_step_is_no_fault_of_the_actor():
    echo = Echo()
    trainer = echo.call()
    playing = threading.Thread(target=echo.play, args=(b"k",), daemon=True)
    playing.start()
    trainer.socket.sendall(b"k")
    trainer.send(("echo", (0.5, "words")))
    time.sleep(0.2)
    reset = struct.pack("ii", 1, 0)  # as a network does it that has lost the connection
    trainer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    trainer.close()
    playing.join(20)
    assert not playing.is_alive()


def test_answers_that_have_come_count_even_late():
    """After Ctrl-Z, say. And one host that stops in the middle of an answer holds up no other."""
    env, hosts, ends, gone = RaySMAC.__new__(RaySMAC), [], [], []
    env.patience = -1.0
    env.ray = SimpleNamespace(wait=lambda references, **_: ([], references))
    env._restart = lambda host, fault: gone.append((hosts.index(host), fault))
    env._outcome = lambda host, reference: gone.append((hosts.index(host), reference))
    with socket.create_server(("127.0.0.1", 0)) as server:
        for i in range(4):
            hosts.append(Host(i, i + 1))
            hosts[i].line = Line(socket.create_connection(server.getsockname(), 0.5))
            hosts[i].ending = "it ended"
            ends.append(Line(server.accept()[0]))
    for i in (0, 3):
        ends[i].send((f"answer {i}", None, 1))
    ends[1].socket.sendall(pickle.dumps("half an answer")[:-1])
    answers = {
        hosts.index(host): what for host, what, _ in env._answers("step", dict.fromkeys(hosts))
    }
    assert answers == {0: "answer 0", 3: "answer 3"}
    assert gone == [(1, "it ended"), (2, "no answer in time")]
    for line in (*ends, *(host.line for host in hosts)):
        line.close()


def test_what_cannot_be_had_is_said_in_one_line(cluster):
    for n_envs, timeout, message in (
        (5, 20.0, "has cores for 4 games, 2 to an actor"),
        (4, 0.0, "more than 0 seconds"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            RaySMAC("3m", n_envs, 1, timeout, cluster.address)
        assert "\n" not in str(caught.value)


def test_a_machine_without_this_project_can_unpickle_the_actor(tmp_path):
    travels("starcraft.ray_sc2")
    (tmp_path / "actor").write_bytes(ray.cloudpickle.dumps(Machine))
    code = "import pickle, sys; print(pickle.load(open('actor', 'rb')))"
    code += "; assert not any(name.split('.')[0] == 'starcraft' for name in sys.modules)"
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)
