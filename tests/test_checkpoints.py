"""Whatever happens while "Train to win" trains, the agent so far is there.

Drills, not mocks: real kills, real signals, real disks that are full.
"""

import ast
import inspect
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, redirect_stdout
from itertools import islice
from pathlib import Path

import jupytext
import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT, notebook_functions
from jupyter_client.manager import start_new_kernel
from test_train_to_win import SOURCE, TINY, assert_same_models

LINUX = sys.platform.startswith("linux")
posix_only = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
linux_only = pytest.mark.skipif(not LINUX, reason="Linux: mounts and /proc")

# Two games with 16 decisions each: a rollout is 32 decisions, and 4 updates.
ROLLOUT, N_ROLLOUTS = 32, 8
SETTINGS = TINY | {"decisions": N_ROLLOUTS * ROLLOUT}
SEED = 3
# What the drills change in the chapter, so that nobody waits for minutes.
EVERY = 0.2
SHORT = {
    '"n_steps": 128': '"n_steps": 16',
    "N_GAMES = 32": "N_GAMES = 2",
}


def functions(every):
    """Return the functions of the chapter, with checkpoints this often."""
    code = notebook_functions(SOURCE)
    code.open_checkpoints.__wrapped__.__defaults__ = (every,)
    code.games = code.make_games(2, n_groups=1)  # one for all: it takes long
    return code


@pytest.fixture(scope="module")
def code():
    """Return the functions of the chapter; they save after each rollout."""
    return functions(every=0)


# Trainings to which something happens


class Games:
    """A group of real games, and what happens while they are played.

    Parameters
    ----------
    games : ale_py.vector_env.AtariVectorEnv
    events : dict of int to function
        What happens at the end of a rollout, counted from 1. The function
        gets the rewards of the last decision, and may change them.
    """

    def __init__(self, games, events=()):
        self.games = games
        self.num_envs = games.num_envs
        self.closed = games.closed
        self.events = dict(events)
        self.n_steps = 0

    def reset(self, **options):
        return self.games.reset(**options)

    def close(self):
        self.closed = True
        self.games.close()

    def send(self, actions):
        self.games.send(actions)

    def recv(self):
        frames, rewards, *rest = self.games.recv()
        rewards = rewards.astype(np.float32)
        self.n_steps += 1
        rollout, step = divmod(self.n_steps, SETTINGS["n_steps"])
        if step == 0 and rollout in self.events:
            self.events[rollout](rewards)
        return frames, rewards, *rest


def press_stop(rewards):
    raise KeyboardInterrupt


def small_agent(code, seed=SEED, n_hidden=8):
    rng = np.random.default_rng(seed)
    return code.new_agent(code.initialize_model(rng, n_hidden))


def open_games(code):
    """Return games to train on; new ones if a training was interrupted."""
    if code.games[0].closed:
        code.games = code.make_games(2, n_groups=1)
    return code.games


def train(code, folder, events=(), settings=SETTINGS, seed=SEED, **network):
    """Train a small agent until it is done or something happens."""
    agent = small_agent(code, **network)
    games = Games(open_games(code)[0], events)
    return code.train([games], agent, seed, settings, folder=str(folder))


def train_and_stop(code, folder, rollouts=5, **options):
    """Return the agent after some rollouts; stop in the middle of the next."""
    events = {rollouts + 1: press_stop}
    agent, history = train(code, folder, events, **options)
    assert len(decisions_saved(code, folder)) == 2
    return agent, history


def checkpoints(folder):
    """Return the paths of the checkpoints, the newest one last."""
    return sorted(Path(folder).glob("*.safetensors"))


def contents(folder):
    """Return what is in a folder, except for the lock."""
    files = (p for p in Path(folder).iterdir() if p.name != "lock")
    return {path.name: path.read_bytes() for path in files}


def decisions_saved(code, folder):
    """Return the decisions of each checkpoint; each one must be good."""
    paths = checkpoints(folder)
    saved = [code.load_arrays(path)[1]["decisions"] for path in paths]
    assert saved == [int(path.stem) for path in paths]
    return saved


def assert_same_agents(a, b):
    for part, other in zip(a[:3], b[:3], strict=True):
        assert_same_models(part, other)
    assert a.n_updates == b.n_updates


def without_times(history):
    times = {"seconds", "decisions_per_second"}
    return [
        {k: v for k, v in row.items() if k not in times} for row in history
    ]


# Going on


def test_a_checkpoint_holds_the_whole_run(code, tmp_path):
    run = code.new_run(small_agent(code), SEED)
    training = code.training(open_games(code), run, SEED, SETTINGS)
    pairs = list(islice(training, 5))
    training.close()
    run = pairs[-1][0]
    history = [row | {"seconds": 0.1 * n} for n, (_, row) in enumerate(pairs)]
    assert run.agent.n_updates == 16
    assert np.isnan(history[-1]["mean_return"])
    run = run._replace(returns=[-21.0, 0.1 + 0.2, 3.0])
    code.save_checkpoint(tmp_path, run, history, SETTINGS)
    (path,) = checkpoints(tmp_path)
    start = code.new_run(small_agent(code, seed=99), SEED)
    again, rows = code.read_checkpoint(path, start, SETTINGS)
    assert_same_agents(again.agent, run.agent)
    assert again[1:] == run[1:]
    np.testing.assert_equal(rows, history)
    for state, other in zip(run.generators, again.generators, strict=True):
        a, b = code.generator(state), code.generator(other)
        np.testing.assert_array_equal(a.random(9), b.random(9))


def learn_from_a_rollout(code, agent, state):
    """Return the agent and the metrics after the updates of a rollout."""
    games = open_games(code)
    with ThreadPoolExecutor(1) as pool:
        pictures = code.reset(games, seed=1)
        scenes = [code.first_scene(frames) for frames in pictures]
        rng, learner = np.random.default_rng(2), iter([(agent, {})])
        past, *_ = code.play(games, scenes, rng, SETTINGS, learner)
        rollout, _ = code.make_rollout(past, SETTINGS)
        batches = code.minibatches(rollout, SETTINGS, code.generator(state))
        now = code.anneal(SETTINGS, 0.5)
        *_, last = code.learn(agent, batches, pool, now)
    return last


def test_a_reloaded_agent_learns_exactly_the_same(code, tmp_path):
    """With the same experience, an interruption changes no bit."""
    agent, _ = train_and_stop(code, tmp_path)
    path = checkpoints(tmp_path)[-1]
    _, facts = code.load_arrays(path)
    start = code.new_run(small_agent(code, seed=99), SEED)
    run, _ = code.read_checkpoint(path, start, facts["made_with"])
    state = run.generators[1]
    one, metrics = learn_from_a_rollout(code, agent, state)
    two, other_metrics = learn_from_a_rollout(code, run.agent, state)
    assert one.n_updates == agent.n_updates + 4
    assert_same_agents(one, two)
    assert metrics == other_metrics


def test_two_that_go_on_from_the_same_checkpoint_are_equal(code, tmp_path):
    _, before = train_and_stop(code, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (one, rows), (two, others), (other, _) = (
        train(code, tmp_path / name) for name in ("one", "two", "three")
    )
    assert_same_agents(one, two)
    np.testing.assert_equal(without_times(rows), without_times(others))
    np.testing.assert_equal(rows[:5], before)
    steps = range(ROLLOUT, SETTINGS["decisions"] + 1, ROLLOUT)
    assert [row["decisions"] for row in rows] == list(steps)
    assert np.diff([row["seconds"] for row in rows]).min() > 0
    # What was played but not yet learned from is lost, at both ends.
    assert one.n_updates == 4 * (N_ROLLOUTS - 2)
    assert other.n_updates == 4 * (N_ROLLOUTS - 1)
    assert (one.model["W1"] != other.model["W1"]).any()
    saved = decisions_saved(code, tmp_path / "one")
    assert saved == [SETTINGS["decisions"] - ROLLOUT, SETTINGS["decisions"]]


def schedule(code, monkeypatch, *runs):
    """Return the learning rates and emulator seeds of some trainings."""
    rates, seeds = [], []
    anneal, reset = code.anneal, Games.reset

    def spy_on_anneal(settings, remaining):
        rates.append(anneal(settings, remaining)["learning_rate"])
        return anneal(settings, remaining)

    def spy_on_reset(games, seed):
        seeds.append(seed)
        return reset(games, seed=seed)

    with monkeypatch.context() as patch:
        patch.setitem(code.train.__globals__, "anneal", spy_on_anneal)
        patch.setattr(Games, "reset", spy_on_reset)
        for folder, events in runs:
            train(code, folder, events)
    return rates, seeds


def test_the_schedule_goes_on_and_the_games_are_new(
    code, tmp_path, monkeypatch
):
    runs = [(tmp_path / "one", {}), (tmp_path / "two", {6: press_stop})]
    whole, _ = schedule(code, monkeypatch, runs[0])
    runs = [runs[1], (tmp_path / "two", {})]
    in_two, seeds = schedule(code, monkeypatch, *runs)
    assert whole == in_two
    assert len(set(whole)) == N_ROLLOUTS
    assert seeds == [SEED, SEED + 1_000_000 + 5 * ROLLOUT]


def test_it_says_in_one_line_where_it_goes_on(code, tmp_path, capsys):
    train_and_stop(code, tmp_path)
    capsys.readouterr()
    train(code, tmp_path)
    said = [s for s in capsys.readouterr().out.splitlines() if "%|" not in s]
    (line,) = filter(None, said)
    path = re.escape(str(tmp_path / "000000000160.safetensors"))
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(
        rf"Going on from {path}, saved {when}: 160 decisions, "
        r"mean return \+nan\.",
        line,
    )


def test_a_training_that_is_done_stays_as_it_is(code, tmp_path):
    agent, history = train(code, tmp_path)
    before = decisions_saved(code, tmp_path)
    again, rows = train(code, tmp_path)
    assert_same_agents(agent, again)
    np.testing.assert_equal(rows, history)
    assert decisions_saved(code, tmp_path) == before


def test_without_a_folder_nothing_is_kept(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code.train(open_games(code), small_agent(code), SEED, TINY)
    assert not list(tmp_path.iterdir())


def test_checkpoints_are_half_a_minute_apart(code, tmp_path, monkeypatch):
    signature = inspect.signature(notebook_functions(SOURCE).open_checkpoints)
    assert 0 < signature.parameters["every"].default <= 30
    # So that the eight rollouts take less than that on every computer.
    wrapped = code.open_checkpoints.__wrapped__
    monkeypatch.setattr(wrapped, "__defaults__", (3600,))
    saved = []
    look = {N_ROLLOUTS: lambda rewards: saved.extend(checkpoints(tmp_path))}
    train(code, tmp_path, look)
    assert not saved
    assert len(checkpoints(tmp_path)) == 1  # the one at the end


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 4}, "seed was 3, is 4"),
        (
            {"settings": SETTINGS | {"gamma": 0.5, "clip_coef": 0.3}},
            "clip_coef was 0.2, is 0.3; gamma was 1.0, is 0.5",
        ),
        (
            {"settings": SETTINGS | {"new": 1}},
            "new was None, is 1",
        ),
        (
            {"n_hidden": 9},
            "shapes was {'W1': [5123, 8], 'W2': [8, 4], 'b2': [4]}, "
            "is {'W1': [5123, 9], 'W2': [9, 4], 'b2': [4]}",
        ),
    ],
)
def test_other_settings_are_an_error(code, tmp_path, changes, difference):
    train_and_stop(code, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(RuntimeError) as caught:
        train(code, tmp_path, **changes)
    message = str(caught.value)
    assert str(checkpoints(tmp_path)[-1]) in message
    assert f"other settings: {difference}. " in message
    assert "Set PONG_CHECKPOINTS to another folder" in message
    assert "delete this one to start over" in message
    assert contents(tmp_path) == before
    train(code, tmp_path)  # nor does it keep the folder for itself


# Damaged checkpoints


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-1000] ^= 4
    path.write_bytes(data)


def cut_in_half(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [flip_a_bit, cut_in_half, empty])
def test_a_damaged_checkpoint_is_set_aside(code, tmp_path, capsys, damage):
    train_and_stop(code, tmp_path)
    older, path = checkpoints(tmp_path)
    damage(path)
    data = path.read_bytes()
    capsys.readouterr()
    train_and_stop(code, tmp_path, rollouts=3)
    output = capsys.readouterr().out
    assert f"{path}: damaged" in output
    assert f"Going on from {older}" in output
    assert path.with_suffix(".damaged").read_bytes() == data
    saved = decisions_saved(code, tmp_path)
    assert saved == [6 * ROLLOUT, 7 * ROLLOUT]
    assert len(contents(tmp_path)) == 3


def test_if_both_are_damaged_it_starts_over(code, tmp_path, capsys):
    train_and_stop(code, tmp_path)
    paths = checkpoints(tmp_path)
    for path in paths:
        flip_a_bit(path)
    capsys.readouterr()
    train_and_stop(code, tmp_path, rollouts=2)
    output = capsys.readouterr().out
    for path in paths:
        assert f"{path}: damaged" in output
        assert path.with_suffix(".damaged").exists()
    assert "Going on" not in output
    assert decisions_saved(code, tmp_path) == [ROLLOUT, 2 * ROLLOUT]


def test_other_files_in_the_folder_stay_as_they_are(code, tmp_path):
    for name in ("0.safetensors", "agent.safetensors", "z.safetensors"):
        (tmp_path / name).write_text("not ours")
    before = contents(tmp_path)
    for _ in range(2):
        train(code, tmp_path, {4: press_stop})
    after = contents(tmp_path)
    assert before.items() < after.items()
    names = [f"{n * ROLLOUT:012d}.safetensors" for n in (5, 6)]
    assert sorted(after.keys() - before.keys()) == names


# Files that are something else


def layers(dtype=np.float16, n_hidden=200):
    """Return arrays as a file of weights holds them."""
    shapes = {"W1": (5123, n_hidden), "W2": (n_hidden, 4), "b2": (4,)}
    return {name: np.zeros(shape, dtype) for name, shape in shapes.items()}


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def malicious_pickle(trap):
    return pickle.dumps({"W1": Malicious(trap)})


def malicious_npy(trap):
    file = io.BytesIO()
    np.save(file, np.array([Malicious(trap)], object), allow_pickle=True)
    return file.getvalue()


def malicious_npz(trap):
    file = io.BytesIO()
    np.savez(file, W1=np.array([Malicious(trap)], object))
    return file.getvalue()


def header(claims):
    """Return a file whose header claims something, and 64 bytes more."""
    text = json.dumps(claims).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


def claim(dtype, shape, end):
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}
    facts = {"facts": "{}", "sha256": "0" * 64}
    return header({"__metadata__": facts, "W1": tensor})


FILES = {
    "empty": b"",
    "one byte": b"\0",
    "text": b"To be, or not to be, that is the question.",
    "web page": b"<!DOCTYPE html><html><body>404: Not Found</body></html>",
    "only zeros": bytes(1000),
    "a header of 2^64 bytes": b"\xff" * 8 + b"{}",
    "a header of 2^63 bytes": (2**63).to_bytes(8, "little") + b"{}",
    "a header of 1 GB": (2**30).to_bytes(8, "little") + b"{}",
    "header: no JSON": (5).to_bytes(8, "little") + b"hello",
    "header: empty": header({}),
    "header: a list": header([]),
    "header: only brackets": (99_999).to_bytes(8, "little") + b"[" * 99_999,
    "no metadata": safetensors.numpy.save({"W1": np.zeros(3)}),
    "other metadata": safetensors.numpy.save(
        {"W1": np.zeros(3)}, {"format": "np"}
    ),
    "facts: only brackets": safetensors.numpy.save(
        {}, {"facts": "[" * 100_000, "sha256": ""}
    ),
    "an array of 10^15 numbers": claim("F32", [10**15], 4 * 10**15),
    "an array of 2^64 numbers": claim("F32", [2**32, 2**32], 64),
    "a negative length": claim("F32", [-4, -4], 64),
    "an empty array, but huge": claim("F32", [0, 2**62], 0),
    "a dtype that NumPy has not": claim("F8_E4M3", [64], 64),
    "a dtype that nobody has": claim("object", [8], 64),
    "too many dimensions": claim("U8", [1] * 70 + [64], 64),
    "pickle": malicious_pickle,
    "npy": malicious_npy,
    "npz": malicious_npz,
}


@pytest.mark.parametrize("reader", ["load_model", "read_checkpoint"])
@pytest.mark.parametrize("kind", FILES)
def test_other_files_are_refused(code, tmp_path, kind, reader):
    data, trap = FILES[kind], tmp_path / "trap"
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data(trap) if callable(data) else data)
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        read(code, path, reader)
    assert not trap.exists()


def test_the_traps_are_real(tmp_path):
    """They do spring where a file may run code."""
    for number, make in enumerate((malicious_npy, malicious_npz)):
        trap = tmp_path / str(number)
        found = np.load(io.BytesIO(make(trap)), allow_pickle=True)
        if number:
            found["W1"]
        assert trap.exists()
    pickle.loads(malicious_pickle(tmp_path / "trap"))["W1"].close()
    assert (tmp_path / "trap").exists()


def read(code, path, reader):
    if reader == "load_model":
        return code.load_model(path)
    start = code.new_run(small_agent(code), SEED)
    return code.read_checkpoint(path, start, SETTINGS)


ALTERED = {
    "an array is missing": lambda a: dict(list(a.items())[1:]),
    "one too many": lambda a: a | {"W9": np.zeros(3, np.float16)},
    "another name": lambda a: {f"{k}'": w for k, w in a.items()},
    "another shape": lambda a: {k: w[:-1] for k, w in a.items()},
    "transposed": lambda a: {k: w.T.copy() for k, w in a.items()},
    "flat": lambda a: {k: w.ravel() for k, w in a.items()},
    "float64": lambda a: {k: w.astype(float) for k, w in a.items()},
    "integers": lambda a: {k: w.view(np.int16) for k, w in a.items()},
    "NaN": lambda a: {k: w * np.nan for k, w in a.items()},
    "infinity": lambda a: {k: w + np.float16(np.inf) for k, w in a.items()},
    "nothing": lambda a: {},
}


@pytest.mark.parametrize("reader", ["load_model", "read_checkpoint"])
@pytest.mark.parametrize("kind", ALTERED)
def test_other_arrays_are_refused(code, tmp_path, kind, reader):
    if reader == "load_model":
        path = tmp_path / "agent.safetensors"
        code.save_arrays(path, layers(), {})
    else:
        run = code.new_run(small_agent(code), SEED)
        code.save_checkpoint(tmp_path, run, [], SETTINGS)
        (path,) = checkpoints(tmp_path)
    read(code, path, reader)  # as yet it is good
    arrays, facts = code.load_arrays(path)
    code.save_arrays(path, ALTERED[kind](arrays), facts)  # right checksum
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        read(code, path, reader)
    wrong = "NaN or infinity" if kind in ("NaN", "infinity") else "expected"
    assert wrong in str(caught.value)


BROKEN_FACTS = {
    "decisions": (None, "many", [], np.inf),
    "returns": (None, "many", ["a"] * 50, [[]] * 50, 1),
    "generators": (None, [], "many", [{}, {}], [{"state": 1}] * 2),
    "history": (None, [{}], ["row"], [[]], 1),
    "n_updates": (None, "many", {}, np.inf),
    "format": (None, 0, 2, "1", []),
    "made_with": (None, [], "many", 1),
}


@pytest.mark.parametrize("name", BROKEN_FACTS)
def test_facts_that_make_no_sense_are_refused(code, tmp_path, name):
    """The arrays are right, and so is the checksum."""
    run = code.new_run(small_agent(code), SEED)
    row = {"seconds": 1.0, "decisions": 64}
    code.save_checkpoint(tmp_path, run, [row], SETTINGS)
    (path,) = checkpoints(tmp_path)
    arrays, facts = code.load_arrays(path)
    read(code, path, "read_checkpoint")
    missing = {k: v for k, v in facts.items() if k != name}
    one = {"generators": facts["generators"][:1]}
    for broken in (
        missing,
        *(facts | {name: value} for value in BROKEN_FACTS[name]),
        *([facts | one] if name in one else []),
        [],
        "facts",
        None,
    ):
        code.save_arrays(path, arrays, broken)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            read(code, path, "read_checkpoint")


CLAIMS = {
    "another dtype": (b'"F32"', b'"I32"'),
    "another shape": (b"[3,4]", b"[4,3]"),
    "another name": (b'"a"', b'"b"'),
    "another fact": (b"by: me", b"by: ab"),
    "another checksum": (b'256":"', b'256":"0'),
    "other numbers": (b"\x40", b"\x41"),
}


@pytest.mark.parametrize("kind", CLAIMS)
def test_a_wrong_checksum_is_noticed(code, tmp_path, kind):
    path = tmp_path / "file.safetensors"
    array = np.full((3, 4), 2, np.float32)  # 2.0 is 0x40000000
    code.save_arrays(path, {"a": array}, {"text": "trained by: me"})
    data, (old, new) = path.read_bytes(), CLAIMS[kind]
    place = data.rindex(old)
    data = data[:place] + new + data[place + len(old) :]
    if len(new) > len(old):  # then the last digit goes
        data = data.replace(b'"0', b'"', 0)
        end = data.index(b'"', place + len(new) + 50)
        data = data[: end - 1] + data[end:]
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"file\.safetensors.*checksum"):
        code.load_arrays(path)


def test_a_file_may_have_so_many_bytes(code, tmp_path):
    path = tmp_path / "file.safetensors"
    code.save_arrays(path, {"a": np.zeros(9)}, {})
    size = path.stat().st_size
    code.load_arrays(path, max_bytes=size)
    with pytest.raises(ValueError, match=r"file\.safetensors: larger than"):
        code.load_arrays(path, max_bytes=size - 1)


@posix_only  # on Windows such a file would fill the disk
@pytest.mark.parametrize("reader", ["load_model", "read_checkpoint"])
def test_a_huge_file_is_not_read(code, tmp_path, reader):
    path = tmp_path / "huge.safetensors"
    path.touch()
    os.truncate(path, 10**11)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"huge\.safetensors: larger"):
            read(code, path, reader)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 60e6


# Fuzzing: thousands of files with faults in them

N_FILES = 10_000
ODD_NUMBERS = (b"-1", b"0", b"1", b"1e999", b"null", b"65536", b"2147483648",
               b"9223372036854775807", b"18446744073709551616")  # fmt: skip
ODD_WORDS = (b"F32", b"F16", b"BF16", b"F64", b"I64", b"BOOL", b"F8_E5M2",
             b"C64", b"U8", b"shape", b"dtype", b"data_offsets", b"facts",
             b"sha256", b"__metadata__", b"a", b"", b"\\ud800")  # fmt: skip
ODD_LENGTHS = (0, 1, 7, 255, 2**20, 10**8, 2**31, 2**32, 2**63, 2**64 - 1)


def replace_in_header(data, rng, pattern, choices):
    """Exchange a part of the header; its length is right all the same."""
    length = int.from_bytes(data[:8], "little")
    if length > len(data):
        return data
    text = data[8 : 8 + length]
    places = list(re.finditer(pattern, text))
    if not places:
        return data
    start, end = places[rng.integers(len(places))].span()
    text = text[:start] + choices[rng.integers(len(choices))] + text[end:]
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def mutate(data, rng):
    """Return contents with a fault of some kind."""
    kind = rng.integers(9)
    i, j = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    if kind == 0 and i < len(data):  # one bit
        bit = bytes([data[i] ^ 1 << rng.integers(8)])
        return data[:i] + bit + data[i + 1 :]
    if kind == 1:  # the end is missing
        return data[:i]
    if kind == 2:  # something is missing in the middle
        return data[:i] + data[j:]
    if kind == 3:  # something comes twice
        return data[:j] + data[i:]
    if kind == 4:  # something is inserted
        return data[:i] + rng.bytes(rng.integers(1, 20)) + data[i:]
    if kind == 5:  # something is overwritten
        return data[:i] + rng.bytes(j - i) + data[j:]
    if kind == 6:
        length = ODD_LENGTHS[rng.integers(len(ODD_LENGTHS))]
        return length.to_bytes(8, "little") + data[8:]
    if kind == 7:
        return replace_in_header(data, rng, rb"\d+", ODD_NUMBERS)
    return replace_in_header(data, rng, rb"\w+", ODD_WORDS)


def peak_memory():
    """Return the largest memory of this process so far, in bytes."""
    if os.name == "nt":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1024 if LINUX else 1)


def test_ten_thousand_damaged_files(code, tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "fuzzed.safetensors"
    arrays = {
        "a": rng.standard_normal((9, 10)).astype(np.float32),
        "b": np.arange(50, dtype=np.float16),
        "n": np.array([[7]]),
    }
    facts = {"text": "über", "list": [1, 2.5, None, {"x": -3}]}
    code.save_arrays(path, arrays, facts)
    original, largest = path.read_bytes(), peak_memory()
    loaded, by_checksum, peak = 0, 0, 0
    tracemalloc.start()
    for _ in range(N_FILES):
        data = original
        for _ in range(rng.integers(1, 4)):
            data = mutate(data, rng)
        path.write_bytes(data)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        try:
            found, facts_found = code.load_arrays(path, max_bytes=20_000)
        except ValueError as error:  # and nothing else
            assert str(error).startswith(f"{path}: ")
            by_checksum += "its SHA-256 checksum is wrong" in str(error)
        else:
            loaded += 1
            assert_same_models(found, arrays)
            assert all(found[k].dtype == arrays[k].dtype for k in arrays)
            assert facts_found == facts
        peak = max(peak, tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    assert peak < 1e6
    assert peak_memory() - largest < 50e6
    # A few faults change nothing; others are seen by the checksum only.
    assert 0 < loaded < N_FILES / 20
    assert by_checksum > N_FILES / 20


# Numbers that have gone wrong


FAULTS = {
    "NaN": (np.nan, "rewards: NaN or infinity after 96 decisions", 3),
    "infinity": (-np.inf, "rewards: NaN or infinity after 96 decisions", 3),
    # 1e30 is a number, but 32 bits cannot hold the square of the gradient.
    "gradient": (1e30, "the gradient of update 13 holds NaN or inf", 4),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_numbers_gone_wrong_stop_the_training(code, tmp_path, fault):
    value, message, n_good = FAULTS[fault]
    before = {}

    def spoil(rewards):
        before.update(contents(tmp_path))
        rewards[0] = value

    with (
        np.errstate(all="ignore"),
        pytest.raises(FloatingPointError, match=f"^{message}$"),
    ):
        train(code, tmp_path, {4: spoil})
    saved = [(n_good - 1) * ROLLOUT, n_good * ROLLOUT]
    assert decisions_saved(code, tmp_path) == saved
    after = contents(tmp_path)
    assert len(after) == 2
    assert before.items() & after.items()
    if n_good == 3:
        assert before == after
    train(code, tmp_path)  # it can go on from there


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_weights_gone_wrong_stop_the_training(code, tmp_path):
    # One step per rollout, so that no gradient tells of it first.
    changes = {"learning_rate": 1e39, "epochs": 1, "n_minibatches": 1}
    message = "^weights: NaN or infinity after 32 decisions$"
    with (
        np.errstate(all="ignore"),
        pytest.raises(FloatingPointError, match=message),
    ):
        train(code, tmp_path, settings=SETTINGS | changes)
    assert decisions_saved(code, tmp_path) == [ROLLOUT]


# Stop


def test_stop_keeps_what_was_learned(code, tmp_path, capsys):
    agent, history = train_and_stop(code, tmp_path)
    assert "Stopped after 160 decisions." in capsys.readouterr().out
    assert len(history) == 5
    start = code.new_run(small_agent(code, seed=99), SEED)
    path = checkpoints(tmp_path)[-1]
    _, facts = code.load_arrays(path)
    run, rows = code.read_checkpoint(path, start, facts["made_with"])
    assert_same_agents(run.agent, agent)
    np.testing.assert_equal(rows, history)


def test_stop_before_there_is_anything_to_keep(code, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(code, tmp_path, {1: press_stop})
    assert not contents(tmp_path)
    train_and_stop(code, tmp_path)
    before = decisions_saved(code, tmp_path)
    _, history = train(code, tmp_path, {1: press_stop})  # after going on
    assert len(history) == 5
    assert decisions_saved(code, tmp_path) == before


def test_interrupted_games_are_not_used_again(code, tmp_path):
    """With an action on its way, a reset brings old frames, or hangs."""
    train(code, tmp_path / "one")
    games = code.games
    assert not games[0].closed  # at the end of a training nothing is open
    train_and_stop(code, tmp_path / "two")
    assert games[0].closed
    with pytest.raises(RuntimeError, match="make_games"):
        code.reset(games, seed=1)
    (fault,) = (v for k, v in FAULTS.items() if k == "gradient")
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError):
        spoil = {4: lambda rewards: rewards.fill(fault[0])}
        train(code, tmp_path / "three", spoil)
    assert code.games[0] is not games[0]
    assert code.games[0].closed


@posix_only
def test_stop_at_any_moment(code, tmp_path):
    """A real signal in the middle of anything, again and again."""
    settings = SETTINGS | {"decisions": 1_000_000}
    agent, rng, saved = small_agent(code), np.random.default_rng(1), [0]

    def start_timer(rewards):
        seconds = float(rng.uniform(0.001, 0.2))
        signal.setitimer(signal.ITIMER_REAL, seconds)

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(25):
            # The signal may come while the games are being played: new ones.
            with closing(code.make_games(1, n_groups=1)[0]) as engine:
                # After the second rollout, so that there is one to keep. And
                # again: Python ignores what is raised while it collects
                # garbage. Then people press Stop once more.
                presses = dict.fromkeys(range(2, 10_000, 200), start_timer)
                games = Games(engine, presses)
                stopped, history = code.train(
                    [games], agent, SEED, settings, folder=str(tmp_path)
                )
            last, saved = saved[-1], decisions_saved(code, tmp_path)
            assert saved[-1] >= last + SETTINGS["n_steps"]
            assert len(saved) == 2
            assert len(contents(tmp_path)) == 2
            assert stopped.n_updates <= 4 * (len(history) - 1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert stopped.n_updates > 25


# The chapter itself, up to the cell that trains


def last_heading(text):
    """Return the heading that what follows a text stands under, or ""."""
    return (["", *re.findall("^## (.+)", text, re.MULTILINE)])[-1]


def definitions(source):
    """Return only the imports, functions and classes of a cell."""
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if isinstance(node, kinds)]
    return ast.unparse(tree)  # decorators and all


def short_chapter(changes):
    """Return the chapter up to the cell that trains, and the cells after it.

    Parameters
    ----------
    changes : dict of str
        What is exchanged in the text, so that less is to be waited for. Of
        the sections between the set-up and "Keep your agent", it keeps the
        functions only.

    Returns
    -------
    notebook : nbformat.NotebookNode
        Its last cell trains.
    after : list of str
        The cells that follow in the same section.
    """
    text = SOURCE.read_text(encoding="utf-8")
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    notebook, section = jupytext.reads(text, "md:myst"), ""
    parts = {"before": [], "after": []}
    part = "before"
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            section = last_heading(cell.source) or section
            if section == "The ladder":
                break
            continue
        if section not in ("Set-up", "Keep your agent", "Train"):
            cell.source = definitions(cell.source)
        parts[part].append(cell)
        if "agent, history = train(" in cell.source:
            part = "after"
    notebook.cells = parts["before"]
    assert len(parts["after"]) > 5
    return notebook, [cell.source for cell in parts["after"]]


class Program:
    """The chapter as a program, as `make train` runs it.

    Parameters
    ----------
    folder : pathlib.Path
        Where it runs.
    **variables : str
        Of its environment.
    """

    def __init__(self, folder, **variables):
        script = folder.with_name("train-to-win.py")
        if not script.exists():
            notebook, _ = short_chapter(
                SHORT | {"made_with, every=30": f"made_with, every={EVERY}"}
            )
            # A program started in the background may ignore Ctrl-C.
            first = "import signal\n"
            first += (
                "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            )
            script.write_text(
                first + jupytext.writes(notebook, "py:percent"),
                encoding="utf-8",
            )
        folder.mkdir(exist_ok=True)
        # A killed program could not stop a virtual screen that it started.
        variables = {"PONG_DISPLAY": "none", "MPLBACKEND": "agg"} | variables
        env = os.environ | {"PYTHONUNBUFFERED": "1"} | variables
        env.pop("PONG_BUDGET", None)
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        self.log.close()

    def output(self):
        size = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), size, 0).decode()

    def wait_for(self, text):
        """Wait until it has printed something."""
        end = time.monotonic() + 600
        while text not in self.output():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < end, self.output()
            time.sleep(0.01)

    def wait(self):
        """Wait until it has ended; return how."""
        return self.process.wait(600)


# What the progress bar says after the first rollout.
LEARNING = "left, mean return"


@posix_only
def test_twenty_kills(code, tmp_path):
    folder = tmp_path / "checkpoints"
    rng, lost, cut, saved = np.random.default_rng(2), [], 0, 0
    for number in range(20):
        with Program(
            tmp_path / "work", PONG_CHECKPOINTS=str(folder)
        ) as program:
            # While it starts and loads, or while it trains and saves.
            training = number % 5 != 4
            program.wait_for(LEARNING if training else "Checkpoints:")
            begin = time.time()
            time.sleep(rng.uniform(0, 1.5))
            program.process.kill()
            killed = time.time()
            program.wait()
            output = program.output()
        for word in ("damaged", "No checkpoint", "Error"):
            assert word not in output, output
        if "%|" in output and saved:
            found = re.findall(r"Going on from .*: ([\d,]+) dec", output)
            assert found == [f"{saved:,}"], output
        before, saved = saved, max([0, *decisions_saved(code, folder)])
        assert saved >= before
        if training:
            times = [p.stat().st_mtime for p in checkpoints(folder)]
            lost.append(killed - max([begin, *times]))
        names = [path.name for path in folder.iterdir()]
        partial = [name for name in names if name.endswith(".partial")]
        cut += len(partial)
        # A third checkpoint was just there, and the first not yet removed.
        assert len(names) - len(partial) <= 4, names
        assert len(partial) <= 1, names
    print(f"{cut} of 20 while it wrote; {saved:,} decisions; lost: {lost}")
    # A checkpoint is made after a rollout, and it takes a while to write.
    _, facts = code.load_arrays(checkpoints(folder)[-1])
    times = [0.0, *(row["seconds"] for row in facts["history"])]
    assert max(lost) < EVERY + 0.3 + 3 * np.diff(times).max()
    assert saved >= 10 * ROLLOUT  # most of the programs went on
    with Program(tmp_path / "work", PONG_CHECKPOINTS=str(folder)) as program:
        program.wait_for(LEARNING)
        program.process.send_signal(signal.SIGINT)
        assert program.wait() == 0
    names = {path.name for path in checkpoints(folder)}
    assert {p.name for p in folder.iterdir()} == names | {"lock"}
    assert len(names) == 2


@posix_only
def test_ctrl_c_ends_the_program_cleanly(code, tmp_path):
    folder = tmp_path / "work" / "checkpoints"  # where it keeps them by itself
    with Program(tmp_path / "work") as program:
        program.wait_for(LEARNING)
        program.process.send_signal(signal.SIGINT)
        assert program.wait() == 0
        output = program.output()
    done = re.search(r"^Stopped after ([\d,]+) decisions", output, re.M)[1]
    assert f"\n{done} decisions in " in output
    assert "Stopped early: the budget is full." in output
    assert "Traceback" not in output
    assert f"{decisions_saved(code, folder)[-1]:,}" == done
    with Program(tmp_path / "work") as program:
        program.wait_for(f": {done} decisions, mean return")
        assert f"Going on from {folder.name}" in program.output()


@posix_only
def test_the_second_of_two_trainings_is_told(code, tmp_path):
    folder = tmp_path / "checkpoints"
    where = {"PONG_CHECKPOINTS": str(folder)}
    with Program(tmp_path / "one", **where) as one:
        one.wait_for(LEARNING)
        with Program(tmp_path / "two", **where) as two:
            assert two.wait() != 0
            output = two.output()
        assert "RuntimeError: Another training keeps its checkpoi" in output
        assert f" in {folder}. Wait until" in output
        assert "%|" not in output
        # The first one goes on, and goes on saving.
        last = decisions_saved(code, folder)[-1]
        end = time.monotonic() + 600
        while newest_decisions(folder) == last:
            assert one.process.poll() is None, one.output()
            assert time.monotonic() < end
            time.sleep(0.05)
        assert "No checkpoint" not in one.output()
        one.process.kill()
        one.wait()
    last = decisions_saved(code, folder)[-1]
    with Program(tmp_path / "two", **where) as two:  # the lock is free
        two.wait_for("%|")
        assert f"{last:,} decisions, mean return" in two.output()


def newest_decisions(folder):
    return max(int(path.stem) for path in checkpoints(folder))


# The chapter in a notebook, and the stop button


def execute(client, source, on_progress=None):
    """Return whether a cell ended well, and what it printed.

    Parameters
    ----------
    client : jupyter_client.BlockingKernelClient
    source : str
    on_progress : function or None
        Is called when the progress bar shows the first rollout.

    Returns
    -------
    bool
    str
    """
    printed, called = [], []

    def look(message):
        content = message["content"]
        if message["msg_type"] == "stream":
            printed.append(content["text"])
        elif message["msg_type"] == "error":
            printed.extend(content["traceback"])
        if on_progress and not called and LEARNING in "".join(printed):
            called.append(on_progress())

    reply = client.execute_interactive(
        source, timeout=300, allow_stdin=False, output_hook=look
    )
    return reply["content"]["status"] == "ok", "".join(printed)


@posix_only
def test_the_stop_button(code, tmp_path):
    notebook, after = short_chapter(SHORT)
    *before, train_cell = (cell.source for cell in notebook.cells)
    folder = tmp_path / "checkpoints"
    env = os.environ | {
        "PONG_BUDGET": "600",
        "PONG_CHECKPOINTS": str(folder),
        "PONG_DISPLAY": "none",
    }
    manager, client = start_new_kernel(
        kernel_name="python3", cwd=str(tmp_path), env=env
    )
    try:
        # Measured in a section that is left out here.
        for source in (*before, "emulator_speed = 1000.0"):
            good, output = execute(client, source)
            assert good, output
        done = [0]
        for _ in range(2):
            good, output = execute(
                client, train_cell, on_progress=manager.interrupt_kernel
            )
            assert good, output
            assert ("Going on from" in output) == (done[-1] > 0), output
            stopped = re.search(r"Stopped after ([\d,]+) decisions", output)
            done.append(int(stopped[1].replace(",", "")))
            assert done[-1] == decisions_saved(code, folder)[-1] > done[-2]
            for source in after:
                good, output = execute(client, source)
                assert good, output
        good, output = execute(client, "print(history[-1]['decisions'])")
        assert int(output) == done[-1]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


# Disks that are full, read-only, or gone


def run_drill(drill, folder, disk=False):
    """Run a function of this file in a process of its own.

    Parameters
    ----------
    drill : function
        Gets the folder.
    folder : pathlib.Path
    disk : bool
        Whether the folder is to be a disk of 20 MB. Only that process sees
        it, and it is gone with the process.
    """
    prefix = []
    if disk:
        folder.mkdir()
        script = 'mount -t tmpfs -o size=20m tmpfs "$0" && exec "$@"'
        user = [] if os.geteuid() == 0 else ["--map-root-user"]
        prefix = [
            "unshare", *user, "--mount", "sh", "-c", script, str(folder)
        ]  # fmt: skip
        done = subprocess.run([*prefix, "true"], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a small disk is not allowed here")
    program = (
        f"import pathlib, {__name__} as tests\n"
        f"tests.{drill.__name__}(pathlib.Path({str(folder)!r}))\n"
        "print('The drill is over.')"
    )
    done = subprocess.run(
        [*prefix, sys.executable, "-c", program],
        cwd=folder.parent,  # whatever it writes, not into the project
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("The drill is over.\n")


def train_and_listen(*args):
    """Train; return the agent, the history, and what was printed."""
    with redirect_stdout(io.StringIO()) as stdout:
        agent, history = train(*args)
    return agent, history, stdout.getvalue()


def said_why(output):
    """Return the reasons why there is no checkpoint, as they were told."""
    return re.findall(r"No checkpoint: (.*)\. The training goes on\.", output)


def drill_full_disk(folder):
    """Fill the disk, free it, and fill it until the end."""
    code, filler, states = functions(every=0), folder / "filler", {}

    def look(name):
        states[name] = contents(folder)
        states[name].pop("filler", None)

    def fill(rewards):
        with pytest.raises(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(65536))
        look("filled")

    def free(rewards):
        look("before it was free")
        filler.unlink()

    def fill_again(rewards):
        look("free")
        fill(rewards)

    events = {3: fill, 5: free, 7: fill_again}
    agent, history, output = train_and_listen(code, folder, events)
    assert len(history) == N_ROLLOUTS
    assert agent.n_updates == 4 * (N_ROLLOUTS - 1)
    reasons = said_why(output)
    assert len(reasons) == 2  # each time once
    assert all("No space left on device" in reason for reason in reasons)
    # Rollouts 3 and 4 were not saved, 5 and 6 were, 7 and 8 were not.
    names = [f"{n * ROLLOUT:012d}.safetensors" for n in range(9)]
    assert sorted(states["before it was free"]) == names[1:3]
    assert sorted(states["free"]) == names[5:7]
    assert states["filled"] == states["free"]
    look("at the end")
    assert states["at the end"] == states["filled"]
    assert decisions_saved(code, folder) == [5 * ROLLOUT, 6 * ROLLOUT]
    # It goes on from there, full disk or not.
    _, history, output = train_and_listen(code, folder)
    assert f"Going on from {folder / names[6]}" in output
    assert len(said_why(output)) == 1
    filler.unlink()
    train_and_listen(code, folder)
    assert decisions_saved(code, folder) == [7 * ROLLOUT, 8 * ROLLOUT]


@linux_only
def test_full_disk(tmp_path):
    run_drill(drill_full_disk, tmp_path / "disk", disk=True)


def make_read_only(folder):
    """Put a read-only view over a folder; the lock in it stays open."""
    for options in (["--bind", str(folder)], ["-o", "remount,bind,ro"]):
        subprocess.run(["mount", *options, str(folder)], check=True)


def make_writable(folder):
    subprocess.run(["umount", str(folder)], check=True)


def drill_read_only(folder):
    """Make the disk read-only under way, then begin on it."""
    code = functions(every=0)
    events = {4: lambda rewards: make_read_only(folder)}
    agent, history, output = train_and_listen(code, folder, events)
    assert len(history) == N_ROLLOUTS
    assert agent.n_updates == 4 * (N_ROLLOUTS - 1)
    (reason,) = said_why(output)
    assert "Read-only file system" in reason
    before = contents(folder)
    assert decisions_saved(code, folder) == [2 * ROLLOUT, 3 * ROLLOUT]
    # The newest one is damaged, and cannot be set aside.
    older, path = checkpoints(folder)
    make_writable(folder)
    flip_a_bit(path)
    make_read_only(folder)
    _, history, output = train_and_listen(code, folder)
    assert f"{path}: damaged" in output
    assert f"Going on from {older}" in output
    assert len(said_why(output)) == 1
    assert len(history) == N_ROLLOUTS
    after = contents(folder)
    assert before.keys() == after.keys()
    assert before[older.name] == after[older.name]
    # A folder in a read-only one cannot even be made.
    _, history, output = train_and_listen(code, folder / "new")
    assert len(history) == N_ROLLOUTS
    assert len(said_why(output)) == 1


@linux_only
def test_read_only_folder(tmp_path):
    run_drill(drill_read_only, tmp_path / "disk", disk=True)


@pytest.mark.skipif(os.name == "nt", reason="Windows: the lock is in use")
def test_the_folder_is_deleted_under_way(code, tmp_path):
    folder = tmp_path / "checkpoints"
    events = {4: lambda rewards: shutil.rmtree(folder)}
    agent, history, output = train_and_listen(code, folder, events)
    assert len(history) == N_ROLLOUTS
    assert agent.n_updates == 4 * (N_ROLLOUTS - 1)
    (reason,) = said_why(output)
    assert "No such file" in reason
    _, history, output = train_and_listen(code, folder)
    assert not said_why(output)
    assert len(decisions_saved(code, folder)) == 2


@pytest.mark.parametrize("n", [1, 2])
def test_checkpoints_are_deleted_under_way(code, tmp_path, n):
    def delete(rewards):
        for path in checkpoints(tmp_path)[-n:]:
            path.unlink()

    _, history, output = train_and_listen(code, tmp_path, {4: delete})
    assert len(history) == N_ROLLOUTS
    assert not said_why(output)
    assert decisions_saved(code, tmp_path) == [7 * ROLLOUT, 8 * ROLLOUT]


def test_a_file_is_where_the_folder_should_be(code, tmp_path):
    path = tmp_path / "checkpoints"
    path.write_text("a file")
    _, history, output = train_and_listen(code, path)
    assert len(history) == N_ROLLOUTS
    assert len(said_why(output)) == 1
    assert path.read_text() == "a file"


# Memory, files, threads


def resources():
    """Return the memory of this process in MB, its open files and threads."""
    status = Path("/proc/self/status").read_text()
    memory = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024
    threads = int(re.search(r"Threads:\s+(\d+)", status)[1])
    return memory, len(os.listdir("/proc/self/fd")), threads


def drill_memory(folder):
    """As many updates as in twenty minutes, with short rollouts."""
    code, n_rollouts = functions(every=0.1), 1250
    # The first time, tqdm starts a thread, and keeps it.
    train(code, folder.with_name("first"))
    code.games = code.make_games(1, n_groups=1)
    settings = SETTINGS | {
        "decisions": n_rollouts * SETTINGS["n_steps"],
        "epochs": 4,
        "n_minibatches": 4,
    }
    looks = []
    events = {
        n: lambda rewards: looks.append(resources())
        for n in range(250, n_rollouts + 1, 250)
    }
    before = resources()
    agent, _ = train(code, folder, events, settings)
    assert agent.n_updates == 16 * (n_rollouts - 1)
    memory, files, threads = zip(*looks)
    print(looks)
    assert len(looks) == 5
    assert max(memory) <= 1.05 * memory[0]
    assert len(set(files)) == len(set(threads)) == 1
    assert resources()[1:] == before[1:]


@linux_only
def test_memory_files_and_threads_stay_as_they_are(tmp_path):
    run_drill(drill_memory, tmp_path / "checkpoints")


# The section, the locks, the workflows


def test_the_section_is_folded_and_short():
    section, n_lines = "", 0
    for cell in jupytext.read(SOURCE).cells:
        if cell.cell_type == "markdown":
            section = last_heading(cell.source) or section
        elif section == "Keep your agent":
            assert "hide-input" in cell.metadata["tags"]
            n_lines += len(code_lines(cell.source))
    assert 100 < n_lines <= 160


def code_lines(source):
    """Return the lines of a cell without docstrings and empty lines."""
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
            text = node.body[0]
            docstrings |= set(range(text.lineno, text.end_lineno + 1))
    return [
        line
        for number, line in enumerate(source.splitlines(), 1)
        if line.strip() and number not in docstrings
    ]


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_the_locks_install_with_hashes(name, tmp_path):
    """Nothing is missing in a lock, and nothing is without hashes."""
    command = [
        sys.executable, "-m", "uv", "pip", "install", "--dry-run",
        "--require-hashes", "--target", str(tmp_path / "empty"),
        "--python", sys.executable, "-r", str(ROOT / f"{name}.txt"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Would install" in done.stderr


def test_the_workflows_know_no_secret():
    for path in (ROOT / ".github" / "workflows").iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"secrets|token(?!: write)", text, re.IGNORECASE)
