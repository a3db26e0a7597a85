"""The functions of "Scale out": rollouts that travel, and players that die."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

import jupytext
import numpy as np
import psutil
import pytest
from conftest import ROOT, definitions, notebook_functions, notebook_value

SOURCE = ROOT / "content" / "scale-out.md"
BEFORE = ROOT / "content" / "train-to-win.md"
DATA = ROOT / "content" / "data"
# As the chapter's own cell does, before Ray is imported.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_agent_register_timeout_ms": "100000",
}
linux_only = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="a cluster on one computer"
)


@pytest.fixture(scope="module")
def code():
    """Return the functions of the chapter."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    return notebook_functions(SOURCE)


@pytest.fixture(scope="module")
def settings():
    """Return the chapter's settings, with short rollouts."""
    return notebook_value(SOURCE, "settings") | {"n_steps": 32}


@pytest.fixture(scope="module")
def experience(code, settings):
    """Return what happened in a rollout of 6 games."""
    return code.play_alone(6, 3, settings)[0]


def ray_processes():
    """Return the processes of Ray that this one has started."""
    names = ("raylet", "gcs_server", "ray::")
    return [
        p
        for p in psutil.Process().children(recursive=True)
        if p.status() != psutil.STATUS_ZOMBIE
        and any(name in " ".join(p.cmdline()) for name in names)
    ]


# What the chapter repeats


def test_repeated_functions_are_those_of_train_to_win():
    ours, theirs = definitions(SOURCE), definitions(BEFORE)
    repeated = ours.keys() & theirs.keys()
    needed = {"encode", "forward", "play", "make_rollout", "update"}
    assert needed <= repeated
    for name in repeated:
        assert ours[name] == theirs[name], f"{name}: record.py repeated"


def test_settings_are_those_of_train_to_win():
    ours, theirs = (notebook_value(s, "settings") for s in (SOURCE, BEFORE))
    assert ours.pop("max_staleness") == 0  # nothing that PPO has to correct
    assert ours.pop("decisions") < theirs.pop("decisions")  # as the page says
    assert ours == theirs


# Rollouts that travel


def test_packed_experience_is_the_same_again(code, experience):
    packed = code.pack(experience)
    again = code.unpack(packed, code.mirror_columns())
    for k in (0, 1):
        before = code.sparse.vstack([pair[k] for pair in experience.inputs])
        assert (before != again.inputs[0][k]).nnz == 0
    for name in experience._fields[1:]:
        a, b = getattr(experience, name), getattr(again, name)
        np.testing.assert_array_equal(a, b, err_msg=name)
        assert a.dtype == b.dtype, name


def test_a_decision_is_small(code, experience):
    n = experience.actions.size
    assert code.size(code.pack(experience)) / n <= 400


def test_rollouts_of_players_are_those_of_one_process(code, settings):
    """Two players of 4 games each, and both groups of 4 in one process."""
    model = code.initialize_model(np.random.default_rng(1))
    parts = [
        code.Player(4, seed, settings).rollout(model, 0)[0] for seed in (7, 11)
    ]
    mirrored = code.mirror_columns()
    both = code.side_by_side([code.unpack(p, mirrored) for p in parts])
    games = code.make_games(8, n_groups=2)
    scenes = [code.first_scene(p) for p in code.reset(games, 7)]

    class EachItsOwn:
        """Draws for the groups in turn what the players draw."""

        def __init__(self):
            self.rngs = [np.random.default_rng([s, 0]) for s in (7, 11)]
            self.turn = 0

        def random(self, shape):
            rng = self.rngs[self.turn % 2]
            self.turn += 1
            return rng.random(shape)

    learner = iter([(code.new_agent(model), {})])
    alone, *_ = code.play(games, scenes, EachItsOwn(), settings, learner)
    code.close(games)
    for name in alone._fields[1:]:
        a, b = getattr(alone, name), getattr(both, name)
        np.testing.assert_array_equal(a, b, err_msg=name)
    ours, theirs = (code.make_rollout(e, settings)[0] for e in (both, alone))
    for k in (0, 1):
        assert (ours.inputs[k] != theirs.inputs[k]).nnz == 0
    np.testing.assert_array_equal(ours.advantages, theirs.advantages)


def test_who_begins_later_plays_other_games(code, settings):
    model = code.initialize_model(np.random.default_rng(1))
    first, same, later = (
        code.Player(2, 5, settings).rollout(model, version)[0]
        for version in (0, 0, 1)
    )
    np.testing.assert_array_equal(first["columns"], same["columns"])
    assert not np.array_equal(first["columns"], later["columns"])


def test_scaling_on_paper(code):
    sizes = {
        "decision": 100,
        "weights": 4e6,
        "batch": 2000,
        "steps": 16,
        "network": 1e9,
    }
    speeds = code.scaling(np.array([2, 16, 1000]), 1000, 5000, sizes, 16)
    np.testing.assert_allclose(speeds["rollouts move"], [2000, 5000, 5000])
    both = 1 / (1 / 1000 + 1 / 5000)
    full = 1e9 * 2000 * 16 / (2 * 16 * 4e6)
    np.testing.assert_allclose(
        speeds["gradients move"], [2 * both, 16 * both, min(full, 1000 * both)]
    )


class FakePlayer:
    """Plays a rollout in no time."""

    def __init__(self):
        self.rollout = self

    def remote(self, weights, version):
        self.answer = {}, [-1.0], version
        return object()


@pytest.mark.parametrize("ahead", [0, 1])
def test_players_are_ahead_by_as_much_as_the_setting_says(
    code, monkeypatch, ahead
):
    """Two players are fast, and one is as slow as it can be."""
    slow, under_way = FakePlayer(), []

    def next_answer(crew):
        under_way.append(len(crew.playing))
        order = sorted(crew.playing, key=lambda r: crew.playing[r] is slow)
        player = crew.playing.pop(order[0])
        crew.idle.append(player)
        return player.answer

    monkeypatch.setitem(
        code.collect_batch.__globals__, "next_answer", next_answer
    )
    crew = code.Crew([slow, FakePlayer(), FakePlayer()], {}, {})
    totals = {"used": 0, "stale": 0}
    for version in range(6):
        fresh, returns, counts = code.collect_batch(
            crew, None, version, 3, ahead
        )
        assert len(fresh) == counts["used"] == 3
        assert len(returns) == counts["used"] + counts["stale"]
        assert counts["lost"] == 0
        totals = {name: totals[name] + counts[name] for name in totals}
        # Who waits has nothing under way between the batches.
        assert bool(crew.playing) == bool(ahead)
    assert totals == {"used": 18, "stale": 0}
    assert max(under_way) == 3
    if ahead:  # the slow one has been away since the first batch
        slow, slowest = None, slow
        crew.idle.extend(p for p in crew.playing.values() if p is not slowest)
        for reference in list(crew.playing):
            if crew.playing[reference] is not slowest:
                del crew.playing[reference]
        _, _, counts = code.collect_batch(crew, None, 6, 3, ahead)
        assert counts == {"used": 3, "stale": 1, "lost": 0}


# What the page says of the recorded results


def test_recorded_files_are_those_that_the_page_asks_for():
    hashes = notebook_value(SOURCE, "SHA256")
    assert len(hashes) == 3
    for name, expected in hashes.items():
        found = hashlib.sha256((DATA / name).read_bytes()).hexdigest()
        assert found == expected, name
    facts = json.loads((DATA / "scale-out.json").read_text(encoding="utf-8"))
    assert facts["settings"] == notebook_value(SOURCE, "settings")


def test_recorded_results_are_as_the_page_says(code):
    last = {}
    for row in code.read_table(DATA / "scale-out-curves.csv"):
        by_seed = last.setdefault(row["training"], {})
        by_seed[row["seed"]] = row["mean_return"]
        assert row["decisions"] < 260_000
    alone, waiting, ahead = (
        np.array(list(last[name].values()))
        for name in ("one process", "Ray, 2 players", "Ray, 2 players ahead")
    )
    assert len(alone) == len(waiting) == len(ahead) == 5
    # Learning per decision: not worse than alone; staleness beyond all spread.
    assert waiting.mean() > alone.mean() > ahead.mean()
    assert waiting.min() > ahead.max()
    assert alone.min() < waiting.max()
    speeds = {
        row["training"]: row for row in code.read_table(DATA / "scale-out.csv")
    }
    speed = {k: row["decisions_per_second"] for k, row in speeds.items()}
    assert speed["Ray, 2 players"] >= 0.85 * speed["one process"]
    gain = speed["Ray, 2 players ahead"] / speed["Ray, 2 players"] - 1
    assert 0.05 < gain < 0.15  # about a tenth
    moved = {k: row["bytes_per_decision"] for k, row in speeds.items()}
    assert moved["Ray, 2 players"] <= 400
    # No scheme is faster than its emulators, so the gain has its limit.
    ratio = speed["Ray, 2 players"] / speed["one game per task"]
    assert 1.4 < ratio < 3


# Memory


def test_free_memory_knows_the_limits_of_a_container(code, tmp_path):
    assert code.free_memory(tmp_path) == np.inf
    (tmp_path / "proc").mkdir()
    info = tmp_path / "proc" / "meminfo"
    info.write_text("MemTotal: 9 kB\nMemAvailable:    2000000 kB\n")
    assert code.free_memory(tmp_path) == 2_048_000_000
    groups = tmp_path / "sys" / "fs" / "cgroup"
    groups.mkdir(parents=True)
    (groups / "memory.max").write_text("max\n")
    (groups / "memory.current").write_text("1000\n")
    assert code.free_memory(tmp_path) == 2_048_000_000
    (groups / "memory.max").write_text("1500\n")
    assert code.free_memory(tmp_path) == 500


def test_too_little_memory_is_said_before_ray_starts(code):
    with pytest.raises(MemoryError, match=r"need 1000000.0 GB of free mem"):
        with code.ray_running(needed=1e15):
            pass
    assert not code.ray.is_initialized()


def test_without_ray_the_cell_says_what_to_do(tmp_path):
    cells = [
        cell.source
        for cell in jupytext.read(SOURCE).cells
        if cell.cell_type == "code"
    ]
    # A folder in which there is everything but Ray.
    script = tmp_path / "script.py"
    hidden = (
        "real = metadata.version\n"
        "def version(name):\n"
        "    if name == 'ray':\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "metadata.version = version\n"
    )
    script.write_text("\n".join([cells[0], hidden, cells[1]]))
    env = {k: v for k, v in os.environ.items() if "COLAB" not in k}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: Missing: ray>=2.50. Run `")
    assert "pip install" in last and "restart the kernel" in last


# Ray itself, on two nodes of this computer


@pytest.fixture
def cluster(code, monkeypatch):
    """Start two nodes, connect to them, and check that nothing is left."""
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    common = {
        "num_cpus": 1,
        "object_store_memory": 100_000_000,
        "include_dashboard": False,
    }
    # Nodes that are started so share no secret, and need a folder for addresses.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    cluster = Cluster(initialize_head=True, head_node_args=common)
    cluster.second = cluster.add_node(**common)
    with code.ray_running(cluster.address):
        yield cluster
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
    deadline = time.monotonic() + 20
    while ray_processes() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not ray_processes()


@linux_only
def test_training_outlives_a_player_and_a_node(code, cluster, settings):
    """The rollouts are right, and at most one is lost each time."""
    ray = code.ray
    assert len(ray.nodes()) == 2
    players = code.start_players(2, 8, 5, settings)
    model = code.initialize_model(np.random.default_rng(1))

    # The same rollouts as in this process.
    weights = ray.put(model)
    there = ray.get([p.rollout.remote(weights, 0) for p in players])
    for seed, (packed, returns, version) in zip((5, 9), there):
        here = code.Player(4, seed, settings).rollout(model, 0)
        assert here[1:] == (returns, version)
        for name in packed:
            np.testing.assert_array_equal(packed[name], here[0][name], name)

    # One of them on each node; kill one, then take its node away.
    def node_id(self):
        import ray

        return ray.get_runtime_context().get_node_id()

    nodes = ray.get([p.__ray_call__.remote(node_id) for p in players])
    assert len(set(nodes)) == 2
    second = nodes.index(cluster.second.node_id)
    run = code.new_run(code.new_agent(model), 1)
    batches = code.training_on_ray(players, run, settings, len(players))
    rows, store = [], 100_000_000
    for _, row in batches:
        rows.append(row)
        if len(rows) == 2:
            ray.kill(players[second], no_restart=False)
        if len(rows) == 30:
            cluster.remove_node(cluster.second, allow_graceful=False)
        if len(rows) == 60:
            break
    batches.close()
    lost = [
        sum(row["lost"] for row in part) for part in (rows[:30], rows[30:])
    ]
    assert lost[0] == 1  # the one that the killed player was playing
    assert lost[1] <= 1
    assert [row["decisions"] for row in rows] == sorted(
        row["decisions"] for row in rows
    )
    assert all(row["used"] for row in rows)
    # What nobody needs any more is gone from the object store.
    deadline = time.monotonic() + 60  # Ray clears away when it has time
    while True:
        free = ray.available_resources().get("object_store_memory", 0)
        if store - free < 20e6 or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert store - free < 20e6
    for player in players:
        ray.kill(player)
