"""The functions of "Scale out": rollouts that travel, and players that die."""

import os
import shlex
import sys
import time
from itertools import cycle
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from conftest import CONTENT, linux_only, run
from pong import scale_out
from pong.many_games_at_once import close, initialize_model
from pong.ppo_in_numpy import make_rollout, new_agent
from pong.set_up import facts, recorded
from pong.train_to_win import PLAIN, bootstrap_interval, new_run

SETTINGS = PLAIN | {"max_staleness": 0, "n_steps": 32}
MODEL = initialize_model(np.random.default_rng(1))


def test_rollouts_of_players_are_those_of_one_process():
    """Two players of 4 games each, and both groups of 4 in one process."""
    players = [scale_out.Player(4, seed, SETTINGS) for seed in (7, 11)]
    parts = [player.rollout(MODEL, 0)[0] for player in players]
    both = scale_out.side_by_side([scale_out.unpack(p) for p in parts])

    # For each group in turn, draw what its player draws.
    draws = cycle([np.random.default_rng([seed, 0]) for seed in (7, 11)])
    rng = Mock(random=lambda shape: next(draws).random(shape))
    games = scale_out.make_games(8, n_groups=2)
    scenes = map(scale_out.first_scene, scale_out.reset(games, 7))
    alone, _ = scale_out.play(games, scenes, iter([MODEL]), rng, 32)
    close(games)
    for a, b in zip(alone[1:], both[1:]):
        assert_array_equal(a, b, strict=True)
    rollouts = [make_rollout(past, SETTINGS)[0] for past in (alone, both)]
    for a, b in zip(*(rollout.inputs for rollout in rollouts)):
        assert (a != b).nnz == 0 and a.dtype == b.dtype
    n_bytes = sum(a.nbytes for part in parts for a in part.values())
    assert n_bytes / alone.actions.size <= 100
    # Whoever begins later plays other games.
    later, _, _ = scale_out.Player(4, 7, SETTINGS).rollout(MODEL, 2_000)
    assert not np.array_equal(later["columns"], parts[0]["columns"])


def test_a_training_goes_on_with_its_versions_schedule_and_returns(monkeypatch):
    """Its players would otherwise begin with the first games once more."""
    player, asked = scale_out.Player(4, 7, SETTINGS), []

    def collect(crew, weights, version, n_rollouts, max_staleness):
        asked.append((version, weights))
        return [player.rollout(weights, version)[0]], [-21.0], {"used": 1}

    monkeypatch.setattr(scale_out, "collect_batch", collect)
    monkeypatch.setattr(scale_out.ray, "put", lambda thing: thing)
    monkeypatch.setattr(scale_out, "anneal", anneal := Mock(wraps=scale_out.anneal))
    agent, few = new_agent(MODEL)._replace(n_updates=48), SETTINGS | {"decisions": 256}
    start = new_run(agent, 1, critic=False)
    runs = [run for run, _ in scale_out.training_on_ray([], start, few, 1)]
    assert [v for v, _ in asked] == [3, 4] and asked[1][1] is runs[0].agent.model
    assert [call.args[1] for call in anneal.call_args_list] == [1, 0.5]
    assert runs[-1].returns == [-21.0] * 2
    with pytest.raises(ValueError, match="critic"):
        next(scale_out.training_on_ray([], new_run(agent, 1), few, 1))


def fake_player(name):
    """Return who plays a rollout in no time, and answers with its own name."""
    return Mock(**{"rollout.remote": lambda weights, version: (name, version)})


@pytest.mark.parametrize("ahead", [0, 1])
def test_players_are_ahead_by_as_much_as_the_setting_says(monkeypatch, ahead):
    """Two players are fast, and one is as slow as it can be."""
    slow = "a"

    def next_answer(crew):
        reference = min(crew.playing, key=lambda r: r[0] == slow)
        crew.idle.append(crew.playing.pop(reference))
        return {}, [-1.0], reference[1]

    monkeypatch.setattr(scale_out, "next_answer", next_answer)
    crew = scale_out.Crew([*map(fake_player, "abc")], {}, {})
    for version in range(6):
        batch = scale_out.collect_batch(crew, None, version, 3, ahead)
        assert len(batch[0]) == len(batch[1]) == 3
        assert batch[2] == {"used": 3, "stale": 0, "lost": 0}
        # Who waits has nothing under way between the batches.
        assert len(crew.playing) == 3 * ahead
    if ahead:  # the slow one has been away since the first batch: it is back
        slow = None
        batch = scale_out.collect_batch(crew, None, 6, 3, ahead)
        assert batch[2] == {"used": 3, "stale": 1, "lost": 0}


def test_recorded_results_are_as_the_page_says():
    settings = facts("scale-out")["settings"]
    now = SETTINGS | {"decisions": settings["decisions"], "n_steps": 128}
    assert settings | {"faster": []} == now
    runs = recorded("scale-out-curves").groupby(["training", "seed"])
    points = runs["mean_return"].last()
    assert len(points) == 15
    table = recorded("scale-out").set_index("training")["decisions_per_second"]
    alone, waiting, ahead = table.index[:3]

    def interval(a, b):
        differences = (points[a] - points[b]).to_numpy()
        return bootstrap_interval(differences, np.random.default_rng(0))

    assert interval(ahead, waiting)[1] < 0
    assert interval(ahead, alone)[1] < 0
    low, high = interval(waiting, alone)
    assert low < 0 < high  # not known
    assert abs(table[waiting] / table[alone] - 1) < 0.05
    assert 0.05 < table[ahead] / table[waiting] - 1 < 0.15  # about a tenth
    assert 1.4 < table[waiting] / table["one game per task"] < 3


def test_free_memory_knows_the_limits_of_a_container(tmp_path):
    assert scale_out.free_memory(tmp_path) == np.inf
    groups = tmp_path / "sys" / "fs" / "cgroup"
    for folder in (groups, tmp_path / "proc"):
        folder.mkdir(parents=True)
    info = "MemTotal: 9 kB\nMemAvailable:    2000000 kB\n"
    (tmp_path / "proc" / "meminfo").write_text(info)
    (groups / "memory.current").write_text("1000\n")
    (groups / "memory.stat").write_text("anon 9\ninactive_file 200\nactive_file 100\n")
    for limit, free in (("max\n", 2_048_000_000), ("1500\n", 800)):
        (groups / "memory.max").write_text(limit)
        assert scale_out.free_memory(tmp_path) == free
    with pytest.raises(MemoryError, match=r"need 1000000.0 GB of free mem"):
        scale_out.ray_running(needed=1e15).__enter__()


def test_a_slow_start_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "before")
    monkeypatch.setattr("ray.init", init := Mock(side_effect=OSError("slow")))
    with pytest.raises(OSError, match="slow"):
        scale_out.start_ray(tmp_path, 1, 1e8)
    assert len({call.kwargs["_temp_dir"] for call in init.call_args_list}) == 5
    # Ray's processes go without what takes them longest to import.
    assert os.environ["PYTHONPATH"].split(os.pathsep)[1:] == ["before"]
    code = "import ray, sys; sys.exit('lark' in sys.modules)"
    assert run(sys.executable, "-c", code).returncode == 0


@linux_only
def test_folders_of_killed_programs_go(tmp_path):
    pid = run("sh", "-c", "echo $$").stdout.strip()
    mine = tmp_path / f"ray-pong-{os.getpid()}-x"
    for folder in (mine, tmp_path / f"ray-pong-{pid}-x"):
        (folder / "1").mkdir(parents=True)
    with scale_out.temporary_folder(tmp_path) as new:
        assert set(tmp_path.iterdir()) == {mine, Path(new)}


def test_an_address_without_a_cluster_is_said_soon():
    code = "from pong.scale_out import ray_running as r; r('127.0.0.1:9').__enter__()"
    env = os.environ | {"RAY_ADDRESS": "127.0.0.1:9"}
    env["RAY_py_gcs_connect_timeout_s"] = "1"  # of one attempt
    said = run(sys.executable, "-c", code, cwd=CONTENT, env=env).stdout
    assert "ConnectionError: Failed" in said.splitlines()[-1]
    assert said.count("Failed to get cluster ID") == 1  # else 20


@pytest.fixture
def cluster(monkeypatch):
    """Start two nodes of Ray on this computer, and connect to them."""
    from ray.cluster_utils import Cluster

    common = {"num_cpus": 1, "object_store_memory": 10**8, "include_dashboard": False}
    # Ray waits 15 seconds for helpers that choose their ports, and then gives up.
    names = "metrics_agent metrics_export dashboard_agent_listen runtime_env_agent"
    ports = iter(range(20000 + os.getpid() % 1000 * 8, 32768))
    head, second = ({f"{n}_port": next(ports) for n in names.split()} for _ in "12")
    with scale_out.temporary_folder("/tmp") as folder:
        # Nodes that are started so share no secret, and need such a folder.
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        monkeypatch.setenv("RAY_TMPDIR", folder)
        monkeypatch.setenv("PYTHONPATH", folder)  # as `start_ray` does
        Path(folder, "rfc3987_syntax.py").write_text("raise ImportError")
        nodes = Cluster(initialize_head=True, head_node_args=common | head)
        nodes.second = nodes.add_node(**common, **second)
        with scale_out.ray_running(nodes.address):
            yield nodes
        nodes.shutdown()


@linux_only
def test_training_outlives_a_player_and_a_node(cluster):
    """The rollouts are right, and at most one is lost each time."""
    if shlex.quote(sys.executable) != sys.executable:
        pytest.skip("Ray starts no worker with py_modules from such a folder")
    ray = scale_out.ray
    players = scale_out.start_players(2, 8, 5, SETTINGS)

    def place(self):
        node = scale_out.ray.get_runtime_context().get_node_id()
        return scale_out.__file__, node, self.seed

    places = [p.__ray_call__.remote(place) for p in players]
    files, nodes, seeds = zip(*ray.get(places, timeout=200))
    assert len(set(seeds)) == 2  # each plays games of its own
    assert all("py_modules" in file for file in files) and len(set(nodes)) == 2

    # Kill one player, then take its node away.
    second = nodes.index(cluster.second.node_id)
    run, rows = new_run(new_agent(MODEL), 1, critic=False), []
    for _, row in scale_out.training_on_ray(players, run, SETTINGS, 2):
        rows.append(row)
        if len(rows) == 2:
            ray.kill(players[second], no_restart=False)
        if len(rows) == 30:
            cluster.remove_node(cluster.second, allow_graceful=False)
        if len(rows) == 60:
            break
    lost = [sum(r["lost"] for r in part) for part in (rows[:30], rows[30:])]
    assert lost[0] == 1  # what the killed player was asked for
    assert lost[1] <= 1
    done = [row["decisions"] for row in rows]
    assert done == sorted(done) and all(row["used"] for row in rows)
    # Nothing is stale, so the first minibatch meets the weights that played.
    assert all(abs(row["first_kl"]) < 1e-6 for row in rows)

    # What nobody needs any more is gone from the object store.
    deadline = time.monotonic() + 60
    while ray.available_resources().get("object_store_memory", 0) < 80e6:
        assert time.monotonic() < deadline
        time.sleep(0.2)
