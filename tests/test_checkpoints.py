"""Where possible, drills instead of mocks: real kills, signals, and full disks."""

import errno
import io
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings, strategies
from jupyter_client.manager import run_kernel
from numpy.testing import assert_array_equal, assert_equal

import pong.keep_a_training_safe as safe
import pong.train_to_win as ttw
from conftest import ROOT, linux_only, run, unshared
from pong.many_games_at_once import initialize_model, make_games, reset
from pong.ppo_in_numpy import new_agent

posix_only = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")

# Two games with 16 decisions each: a rollout is 32 decisions, and 4 updates.
ROLLOUT, N_ROLLOUTS, SEED = 32, 8, 3
SETTINGS = ttw.SETTINGS | {"decisions": N_ROLLOUTS * ROLLOUT, "n_steps": 16}
SETTINGS |= {"epochs": 2, "n_minibatches": 2}
PATHS = [str(ROOT / name) for name in ("tests", "scripts")]
GAMES = []  # the same ones for all: to start emulators takes long


def some_games():
    if not GAMES or GAMES[0].closed:
        GAMES[:] = make_games(2, n_groups=1)
    return GAMES


def press_stop(rewards):
    signal.raise_signal(signal.SIGINT)


def start_of(n_hidden=8):
    model = initialize_model(np.random.default_rng(SEED), n_hidden)
    return ttw.new_run(new_agent(model), SEED)


def train(folder, events=(), changes=(), n_hidden=8, every=0):
    """Train a small agent, as in a notebook, until it is done or stopped.

    events has functions of a rollout's rewards, by the rollout's number.
    """
    changed = SETTINGS | {"faster": ("W2", "b2")} | dict(changes)  # JSON has lists
    events, numbers, play = dict(events), itertools.count(1), ttw.play
    opened = safe.open_checkpoints(folder, start_of(n_hidden), changed, every)

    def eventful_play(*args):
        past, scenes = play(*args)
        if happens := events.get(next(numbers)):
            happens(past.rewards)
        return past, scenes

    with (
        mock.patch.object(ttw, "get_ipython", return_value="a notebook"),
        mock.patch.object(ttw, "play", eventful_play),
        opened as (run, history, save),
    ):
        return ttw.train(some_games(), run, SEED, changed, np.inf, history, save)


def listen(*args):
    """Return what a training prints that nothing must stop, and its troubles."""
    with redirect_stdout(io.StringIO()) as stdout:
        _, history = train(*args)
    assert len(history) == N_ROLLOUTS
    said = stdout.getvalue()
    return said, re.findall(r"No checkpoint: (.*)\. Training goes on\.", said)


def checkpoints(folder):
    return sorted(Path(folder).glob("*.safetensors"))


def contents(folder):
    files = (p for p in Path(folder).iterdir() if p.name != "lock")
    return {path.name: path.read_bytes() for path in files}


def rollouts_saved(folder):
    """Return the age of each checkpoint, in rollouts; each one must be good."""
    paths = checkpoints(folder)
    saved = [safe.load_arrays(path)[1]["decisions"] for path in paths]
    assert saved == [int(path.stem) for path in paths]
    return [decisions / ROLLOUT for decisions in saved]


def assert_same_arrays(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert_array_equal(a[name], b[name], strict=True)


def assert_same_runs(a, b):
    assert_same_arrays(safe.run_arrays(a), safe.run_arrays(b))
    assert [n.n_updates for n in a[:2]] == [n.n_updates for n in b[:2]]
    assert a[2:] == b[2:]


def test_stop_then_go_on_as_if_from_memory(tmp_path, capsys):
    handler = signal.default_int_handler
    signal.signal(signal.SIGINT, handler)  # in the background: ignored
    with (
        mock.patch.object(ttw, "anneal", wraps=ttw.anneal) as anneal,
        mock.patch.object(ttw, "reset", wraps=ttw.reset) as reset,
    ):
        stopped, history = train(tmp_path, {5: press_stop})
        assert "Stopped after 160 decisions." in capsys.readouterr().out
        assert signal.getsignal(signal.SIGINT) is handler
        assert not GAMES[0].closed  # a stop waits for the rollout
        assert rollouts_saved(tmp_path) == [4, 5] and len(history) == 5
        end, rows = train(tmp_path)
    rates = [call.args[1] for call in anneal.call_args_list]
    assert rates == [1 - n / N_ROLLOUTS for n in range(N_ROLLOUTS)]
    memory, _ = ttw.train(some_games(), stopped, SEED, SETTINGS, np.inf, history)
    assert_same_runs(end, memory)
    assert_equal(rows[:5], history)
    steps = range(ROLLOUT, SETTINGS["decisions"] + 1, ROLLOUT)
    assert [row["decisions"] for row in rows] == list(steps)
    assert np.diff([row["seconds"] for row in rows]).min() > 0
    # New games; and what was not yet learned from is lost, at both ends.
    seeds = [call.args[1] for call in reset.call_args_list]
    assert seeds == [SEED, SEED + 1_000_000 + 5 * ROLLOUT]
    assert end.agent.n_updates == 4 * (N_ROLLOUTS - 2)
    capsys.readouterr()
    again, same = train(tmp_path)
    said = f"Going on from {checkpoints(tmp_path)[-1]}: 256 decisions, mean "
    assert capsys.readouterr().out == f"{said}return +nan.\n"
    assert_same_runs(end, again)
    assert_equal(same, rows)
    assert rollouts_saved(tmp_path) == [7, 8]


def test_checkpoints_are_half_a_minute_apart(tmp_path):
    assert safe.open_checkpoints.__wrapped__.__defaults__ == (30,)  # seconds
    saved = []
    look = {N_ROLLOUTS: lambda rewards: saved.extend(checkpoints(tmp_path))}
    train(tmp_path, look, every=3600)
    assert not saved and len(checkpoints(tmp_path)) == 1  # that at the end


def test_other_settings_are_an_error(tmp_path):
    train(tmp_path, {2: press_stop})
    before = contents(tmp_path)
    wrong = re.escape("new was None, is 2; shapes was {'W1': [5123, 8], 'W2': [8, 4],")
    with pytest.raises(RuntimeError, match=wrong):
        train(tmp_path, changes={"new": 2}, n_hidden=9)
    assert contents(tmp_path) == before
    train(tmp_path)  # nor does it keep the folder for itself


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-1000] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("n_damaged", [1, 2])
def test_damaged_checkpoints_are_set_aside(tmp_path, capsys, n_damaged):
    (tmp_path / "agent.safetensors").write_text("not ours")
    train(tmp_path, {5: press_stop})
    older, newest, _ = checkpoints(tmp_path)
    flip_a_bit(newest)
    if n_damaged == 2:
        os.truncate(older, 0)
    before = contents(tmp_path)
    train(tmp_path, {2: press_stop})
    said, after = capsys.readouterr().out, contents(tmp_path)
    n = 6 if n_damaged == 1 else 2  # it goes on, or begins anew
    names = {f"{k * ROLLOUT:012d}.safetensors" for k in (n - 1, n)}
    for path in [older, newest][-n_damaged:]:
        assert f"{path}: damaged" in said
        aside = path.with_suffix(".damaged").name
        assert after.pop(aside) == before[path.name]
    assert after.pop("agent.safetensors") == b"not ours"
    assert after.keys() == names
    assert (f"Going on from {older}" in said) == (n_damaged == 1)


OTHER_FILES = [
    b"<!DOCTYPE html><html><body>404: Not Found</body></html>",
    (99_999).to_bytes(8, "little") + b"[" * 99_999,
    safetensors.numpy.save({"W1": np.zeros(3)}),
    safetensors.numpy.save({}, {"facts": "[" * 100_000, "sha256": ""}),
]
ODD = b"-1 0 1e999 null F16 F8_E4M3 shape facts sha256 \\ud800 [[1,2],3]"
ODD += b" 4611686018427387904 18446744073709551616 1,1,1,1,1,1,1,1,1" + b",1" * 60


def test_other_and_damaged_files_are_refused(tmp_path):
    path, noticed = tmp_path / "fuzzed.safetensors", []
    arrays = {"a": np.ones((9, 10), np.float32), "n": np.array([[7]])}
    facts = {"text": "über", "list": [1, 2.5, None, {"x": -3}]}
    safe.save_arrays(path, arrays, facts)
    original = path.read_bytes()
    place = strategies.integers(0, len(original))

    def check(data):
        path.write_bytes(data)
        try:
            found, said = safe.load_arrays(path)
        except ValueError as error:  # and nothing else
            assert str(error).startswith(f"{path}: ")
            noticed.append(str(error))
        else:
            assert_same_arrays(found, arrays)
            assert said == facts

    @settings(max_examples=700, deadline=None, database=None, derandomize=True)
    @given(place, place | strategies.just(1), strategies.binary())
    def exchange_bytes(start, length, new):
        check(original[:start] + new + original[start + length :])

    check(original)
    assert not noticed
    for data in OTHER_FILES:
        check(data)
    assert len(noticed) == len(OTHER_FILES)
    exchange_bytes()
    end = 8 + int.from_bytes(original[:8], "little")
    words = [m.span() for m in re.finditer(rb"\w+", original[8:end])]
    for (start, stop), new in itertools.product(words, ODD.split()):
        text = original[8 : 8 + start] + new + original[8 + stop : end]
        check(len(text).to_bytes(8, "little") + text + original[end:])
    # Some are seen by the checksum only.
    assert sum("SHA-256 checksum is wrong" in said for said in noticed) > 50
    # A huge file is not read.
    with pytest.raises(ValueError, match="larger than 99 bytes"):
        safe.load_arrays(path, max_bytes=99)


@pytest.mark.parametrize("kind", ["model", "small_model", "checkpoint"])
def test_other_arrays_are_refused(tmp_path, kind):
    path, start = tmp_path / "000000000000.safetensors", start_of(n_hidden=200)
    if kind == "checkpoint":
        safe.save_checkpoint(tmp_path, start, [], SETTINGS)
        read = partial(safe.read_checkpoint, path, start, SETTINGS)
    else:
        getattr(safe, f"save_{kind}")(path, start.agent.model, {})
        read = partial(getattr(safe, f"load_{kind}"), path)
    read()  # as yet it is good
    arrays, facts = safe.load_arrays(path)
    name = next(k for k in arrays if k.endswith("W2"))
    w = arrays.pop(name)
    for altered, wrong in (
        ({}, "expected"),
        ({name: w, "W9": np.zeros(3, np.float16)}, "expected"),
        ({name: w[:-1]}, "expected"),
        ({name: w.astype(float)}, "expected"),
        ({name: w * np.nan}, "NaN or infinity"),
        ({name: w + np.inf}, "NaN or infinity"),
    ):
        safe.save_arrays(path, arrays | altered, facts)  # right checksum
        with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{wrong}"):
            read()


def test_facts_that_make_no_sense_are_refused(tmp_path):
    """The arrays are right, and so is the checksum."""
    rows, returns = [{"seconds": 0.1, "mean_return": np.nan}], [-21.0, 0.3]
    run = start_of()._replace(returns=returns)
    for name in "89":  # damaged ones that cannot be set aside push no other out
        (tmp_path / f"99999999999{name}.safetensors").touch()
    safe.save_checkpoint(tmp_path, run, rows, SETTINGS)
    path = checkpoints(tmp_path)[0]
    read = partial(safe.read_checkpoint, path, run, SETTINGS)
    again, history = read()  # as yet it is good
    assert_same_runs(again, run)
    assert_equal(history, rows)
    arrays, facts = safe.load_arrays(path)
    broken = [[], "facts", None, facts | {"format": 2}]
    for name in facts.keys() - {"agent", "critic"}:  # their weights are arrays
        broken.append({k: v for k, v in facts.items() if k != name})
        for value in (None, "many", np.inf, [[]], [{}, {}]):
            broken.append(facts | {name: value})
    for bad in broken:
        safe.save_arrays(path, arrays, bad)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            read()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_weights_come_back_as_they_were_or_are_not_saved(tmp_path):
    path, model = tmp_path / "agent", start_of(n_hidden=200).agent.model
    model = {k: np.asfortranarray(w, float) for k, w in model.items()}
    model["W1"][:, 7] = 0  # a unit that has died
    safe.save_model(path, model, {"seed": 24})
    loaded, facts = safe.load_model(path), safe.load_arrays(path)[1]
    assert_same_arrays(loaded, {k: np.float32(np.float16(w)) for k, w in model.items()})
    safe.save_small_model(path, model, {"seed": 24})
    assert path.stat().st_size < 1_100_000
    assert facts == safe.load_arrays(path)[1] == {"seed": 24}
    small = safe.load_small_model(path)
    half_a_step = np.abs(model["W1"]).max(axis=0) / 254
    assert (np.abs(small["W1"] - model["W1"]) <= 1.001 * half_a_step).all()
    assert_same_arrays(small | {"W1": loaded["W1"]}, loaded)
    for name, bad in (("W1", np.nan), ("W1", np.inf), ("W2", 1e6)):  # 16 bits
        wrong = model | {name: model[name].copy()}
        wrong[name][5, 3] = bad
        for save in (safe.save_model, safe.save_small_model):
            with pytest.raises(ValueError, match="NaN or infinity"):
                save(tmp_path / "none", wrong, {})
    assert os.listdir(tmp_path) == ["agent"]


ONE_STEP = {"learning_rate": 1e39, "epochs": 1, "n_minibatches": 1}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("value", "message", "saved", "changes"),
    [
        (np.nan, "rewards: NaN or infinity after 96 decisions", [2, 3], {}),
        # A number, but 32 bits cannot hold the square of the gradient.
        (1e30, "gradient of update 385", [2, 3], {}),
        # One step per rollout, so that no gradient tells of it first.
        (0, "weights: NaN or infinity after 32 decisions", [1], ONE_STEP),
    ],
)
def test_numbers_gone_wrong_stop_it(tmp_path, value, message, saved, changes):
    def spoil(rewards):
        rewards[-1, 0] = value

    with pytest.raises(FloatingPointError, match=message):
        train(tmp_path, {4: spoil}, changes)
    assert rollouts_saved(tmp_path) == saved
    if not changes:
        train(tmp_path)  # it can go on from there


def test_interrupted_games_are_not_used_again(tmp_path):
    """With an action on its way, a reset brings old frames, or hangs."""
    fail = mock.Mock(side_effect=RuntimeError("in the middle of a rollout"))
    with pytest.raises(RuntimeError, match="in the middle"):
        train(tmp_path, {2: fail})
    with pytest.raises(RuntimeError, match="closed"):
        reset(GAMES, seed=1)


def go_on():
    """Train for as long as nobody stops it, with a checkpoint every 0.1 seconds."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    changed = SETTINGS | {"decisions": 10**7}
    opened = safe.open_checkpoints("checkpoints", start_of(), changed, 0.1)
    with opened as (run, history, save):
        ttw.train(some_games(), run, SEED, changed, np.inf, history, save)
    print("goes on", flush=True)


HERE = f"import sys; sys.path[:0] = {PATHS!r}; import test_checkpoints as t; t."
LEARNING = "games, mean return"  # on the progress bar, after a rollout


def terminal(folder):
    """Start a program that trains in a terminal; return that when it learns."""
    import pexpect  # Windows has none

    command = [sys.executable, ["-c", f"{HERE}go_on()"]]
    opened = pexpect.spawn(*command, cwd=folder, timeout=300, encoding="utf-8")
    opened.expect_exact(LEARNING)
    return opened


@posix_only
def test_kills_and_ctrl_c(tmp_path):
    folder, saved = tmp_path / "checkpoints", []
    going_on = r"Going on from .*: (\S+) decisions"
    for seconds in (0.3, 0.8):
        with terminal(tmp_path) as opened:
            while not checkpoints(folder) and opened.isalive():
                time.sleep(0.05)
            time.sleep(seconds)
            opened.kill(signal.SIGKILL)
            said = opened.before + opened.read()
        assert not re.search("damaged|No checkpoint|Error", said), said
        assert re.findall(going_on, said) == saved
        saved = [f"{rollouts_saved(folder)[-1] * ROLLOUT:,.0f}"]
        # A third checkpoint was just there, and the first not yet removed.
        names = [path.name for path in folder.iterdir()]
        assert sum(name.endswith(".partial") for name in names) <= 1, names
        assert len(names) <= 5, names
    (folder / ".some.partial").touch()  # as if it was killed while it wrote
    with terminal(tmp_path) as opened:
        said = opened.before
        with pytest.raises(RuntimeError, match="Another training keeps"):
            train(folder)
        for _ in range(20):  # as impatient people do
            opened.kill(signal.SIGINT)
            time.sleep(0.02)
        said += opened.read()
        assert opened.wait() == 130
    assert not re.search("Traceback|Interrupt|goes on", said), said
    assert re.findall(going_on, said) == saved
    done = re.search(r"Stopped after ([\d,]+) decisions", said)[1]
    assert f"{int(checkpoints(folder)[-1].stem):,}" == done
    assert len(list(folder.iterdir())) == 3  # two checkpoints and the lock


@posix_only
def test_the_stop_button_of_a_notebook(tmp_path):
    printed, pressed = [], []

    def look(message):
        content = message["content"]
        printed.append(content.get("text", str(content.get("traceback", ""))))
        if not pressed and LEARNING in printed[-1]:
            pressed.append(client.parent.interrupt_kernel())

    with run_kernel(cwd=str(tmp_path)) as client:
        client.execute_interactive(f"{HERE}go_on()", timeout=300, output_hook=look)
    said = "".join(printed)
    assert re.search(r"Stopped after [\d,]+ decisions", said), said
    assert "goes on" in said  # with the next cells
    assert rollouts_saved(tmp_path / "checkpoints")[-1] < 10**7 / ROLLOUT


@posix_only
def test_a_folder_that_cannot_be_locked(tmp_path):
    error = OSError(errno.EOPNOTSUPP, "no locks on this network drive")
    with mock.patch("fcntl.flock", side_effect=error):
        said, _ = listen(tmp_path)
    assert "no locks on this network drive" in said
    assert rollouts_saved(tmp_path) == [7, 8]


def drill(folder):
    """Fill a disk under way, then make it read-only."""
    filler = folder / "filler"

    def fill(rewards):
        with pytest.raises(OSError):
            filler.write_bytes(bytes(2**25))

    def free(rewards):
        assert rollouts_saved(folder) == [1, 2]
        filler.unlink()

    _, troubles = listen(folder, {3: fill, 5: free, 7: fill})
    assert len(troubles) == 2  # each time once
    assert all("No space left on device" in trouble for trouble in troubles)
    assert rollouts_saved(folder) == [5, 6]
    assert len(contents(folder)) == 3  # those, and what fills the disk
    said, troubles = listen(folder)  # on the full disk
    assert f"Going on from {checkpoints(folder)[-1]}" in said
    assert len(troubles) == 1
    filler.unlink()

    def make_read_only(rewards=None):
        for options in (["--bind", str(folder)], ["-o", "remount,bind,ro"]):
            subprocess.run(["mount", *options, str(folder)], check=True)

    _, (trouble,) = listen(folder, {2: make_read_only})
    assert "Read-only file system" in trouble
    assert rollouts_saved(folder) == [6, 7]
    # The newest one is damaged, and cannot be set aside.
    older, path = checkpoints(folder)
    subprocess.run(["umount", str(folder)], check=True)
    flip_a_bit(path)
    make_read_only()
    before = contents(folder)
    said, troubles = listen(folder)
    assert f"{path}: damaged" in said and f"Going on from {older}" in said
    assert len(troubles) == 1
    assert contents(folder) == before
    # A folder in a read-only one cannot even be made.
    assert len(listen(folder / "new")[1]) == 1


@linux_only
def test_disks_that_are_full_or_read_only(tmp_path):
    """In a process of its own, which alone sees this disk of 20 MB."""
    disk = f"mount -t tmpfs -o size=20m tmpfs {tmp_path} && cd {tmp_path}"
    done = run(*unshared(disk), sys.executable, "-c", f"{HERE}drill(t.Path.cwd())")
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(os.name == "nt", reason="Windows: the lock is in use")
def test_files_and_folder_are_deleted_under_way(tmp_path):
    folder = tmp_path / "checkpoints"

    def delete(rewards):
        for path in checkpoints(folder):
            path.unlink()

    _, (trouble,) = listen(folder, {3: delete, 5: lambda _: shutil.rmtree(folder)})
    assert "No such file" in trouble
    folder.write_text("a file, where the folder should be")
    assert len(listen(folder)[1]) == 1
    assert folder.read_text() == "a file, where the folder should be"


@linux_only
def test_memory_files_and_threads_stay_as_they_are(tmp_path):
    looks = []

    def look(rewards):
        status = Path("/proc/self/status").read_text()
        numbers = re.findall(r"(?:RssAnon|Threads):\s+(\d+)", status)
        looks.append([*map(int, numbers), len(os.listdir("/proc/self/fd"))])

    train(tmp_path)  # the first time, tqdm starts a thread, and keeps it
    events = dict.fromkeys((40, 80, 120), look)
    train(tmp_path / "long", events, {"decisions": 120 * ROLLOUT}, every=0.1)
    memory, threads, files = zip(*looks)
    assert max(memory) <= 1.05 * memory[0] + 2000  # kB
    assert len(set(files)) == len(set(threads)) == 1
