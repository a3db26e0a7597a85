# Made by `make notebooks` from content/keep-a-training-safe.md: edit that.

import hashlib
import json
import os
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import safetensors.numpy
from filelock import FileLock, Timeout
from tqdm import tqdm

from pong.many_games_at_once import initialize_model
from pong.ppo_in_numpy import Agent
from pong.train_to_win import Run, generator, mean_of_last


def fingerprint(arrays, text):
    """Return the SHA-256 checksum of some arrays and a text."""
    checksum = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        checksum.update(f"{name} {array.dtype} {array.shape}".encode())
        checksum.update(np.ascontiguousarray(array))
    return checksum.hexdigest()


def save_arrays(path, arrays, facts):
    """Write arrays and facts to a file, completely or not at all."""
    arrays, text = {k: a.copy() for k, a in arrays.items()}, json.dumps(facts)
    metadata = {"facts": text, "sha256": fingerprint(arrays, text)}
    partial = Path(path).with_name(f".{Path(path).name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(safetensors.numpy.save(arrays, metadata))
            file.flush()
            os.fsync(file.fileno())  # through to the disk
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_arrays(path, max_bytes=50_000_000):
    """Return the arrays and the facts in a file."""
    with open(path, "rb") as file:
        contents = file.read(max_bytes + 1)
    if len(contents) > max_bytes:
        raise ValueError(f"{path}: larger than {max_bytes:,} bytes")
    try:
        arrays = safetensors.numpy.load(contents)
        # The header: its length in 8 bytes, then JSON.
        length = int.from_bytes(contents[:8], "little")
        metadata = json.loads(contents[8 : 8 + length])["__metadata__"]
        expected, text = metadata["sha256"], metadata["facts"]
        facts = json.loads(text)
    except Exception as error:  # a file can be damaged in many ways
        raise ValueError(
            f"{path}: damaged, or not written by `save_arrays` ({error})"
        ) from error
    if fingerprint(arrays, text) != expected:
        raise ValueError(f"{path}: damaged, its SHA-256 checksum is wrong")
    return arrays, facts


def check_arrays(path, arrays, expected):
    """Check that arrays have the expected names, shapes, and dtypes."""
    found, wanted = (
        {name: f"{a.dtype} {list(a.shape)}" for name, a in group.items()}
        for group in (arrays, expected)
    )
    if found != wanted:
        raise ValueError(f"{path}: expected {wanted}, got {found}")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError(f"{path}: holds NaN or infinity")


def save_model(path, model, facts):
    """Write weights to a file as 16-bit numbers, and facts about them.

    Parameters
    ----------
    path : str or Path; it is written completely, or not at all
    model : dict of arrays; ValueError: one is not finite in 16 bits
    facts : whatever JSON can hold, such as a dict
    """
    halves = {name: w.astype(np.float16) for name, w in model.items()}
    check_arrays(path, halves, halves)
    save_arrays(path, halves, facts)


def load_model(path, n_hidden=200):
    """Return the weights in a file that `save_model` wrote, as float32.

    Parameters
    ----------
    path : str or Path; ValueError if it is damaged, or holds something else
    n_hidden : int; W1 is (5123, n_hidden), W2 (n_hidden, 4), and b2 (4,)
    """
    expected = initialize_model(np.random.default_rng(0), n_hidden)
    halves = {name: w.astype(np.float16) for name, w in expected.items()}
    arrays, _ = load_arrays(path)
    check_arrays(path, arrays, halves)
    return {name: w.astype(np.float32) for name, w in arrays.items()}


def save_small_model(path, model, facts):
    """Write weights to a file, those of W1 as 8-bit numbers."""
    factors = np.maximum(np.abs(model["W1"]).max(axis=0), 1e-9) / 127
    small = {name: w.astype(np.float16) for name, w in model.items()}
    small["W1"] = np.rint(model["W1"] / factors).astype(np.int8)
    small["factors"] = factors.astype(np.float32)
    check_arrays(path, small, small)
    save_arrays(path, small, facts)


def load_small_model(path):
    """Return the weights that `save_small_model` wrote, as float32."""
    model = initialize_model(np.random.default_rng(0))
    expected = {name: w.astype(np.float16) for name, w in model.items()}
    expected["W1"] = model["W1"].astype(np.int8)
    expected["factors"] = model["W1"][0]
    arrays, _ = load_arrays(path)
    check_arrays(path, arrays, expected)
    arrays["W1"] = arrays["W1"] * arrays.pop("factors")
    return {name: w.astype(np.float32) for name, w in arrays.items()}


CHECKPOINT_NAMES = "[0-9]" * 12 + ".safetensors"  # not other files of yours


def run_arrays(run):
    """Return the arrays of a run, as a checkpoint holds them."""
    return {
        f"{who}/{part}/{name}": array
        for who, network in run._asdict().items()
        if isinstance(network, Agent)  # there may be no critic
        for part in ("model", "mean", "variance")
        for name, array in getattr(network, part).items()
    }


def save_checkpoint(folder, run, history, made_with):
    """Write a checkpoint, then remove all but the last two."""
    facts = {"format": 1, "made_with": made_with, "history": history}
    facts |= run._replace(agent=None, critic=None)._asdict()
    facts["n_updates"] = [who and who.n_updates for who in run[:2]]
    name = f"{run.decisions:012d}.safetensors"
    save_arrays(folder / name, run_arrays(run), facts)
    for old in sorted({*folder.glob(CHECKPOINT_NAMES)} - {folder / name})[:-1]:
        with suppress(OSError):
            old.unlink()


def unpack_run(arrays, facts):
    """Return the run and the history that a checkpoint holds."""
    parts = {}
    for name, array in arrays.items():
        who, part, layer = name.split("/")
        parts.setdefault(who, {}).setdefault(part, {})[layer] = array
    steps = dict(zip(("agent", "critic"), facts["n_updates"], strict=True))
    found = {k: Agent(**v, n_updates=int(steps[k])) for k, v in parts.items()}
    returns = [float(points) for points in facts["returns"]]
    rngs = [generator(facts["generators"][k]) for k in range(3)]
    states = [rng.bit_generator.state for rng in rngs]
    now = int(facts["decisions"]), returns, states
    run = Run(found["agent"], found.get("critic"), *now)
    rows = facts["history"]
    return run, [row | {"seconds": float(row["seconds"])} for row in rows]


def read_checkpoint(path, start, made_with):
    """Return the run and the history in a checkpoint."""
    arrays, facts = load_arrays(path, max_bytes=10**9)
    then = facts.get("made_with") if isinstance(facts, dict) else None
    if not isinstance(then, dict) or facts.get("format") != 1:
        raise ValueError(f"{path}: not a checkpoint of this chapter")
    differences = [
        f"{name} was {then.get(name)}, is {made_with.get(name)}"
        for name in sorted(then | made_with)
        if then.get(name) != made_with.get(name)
    ]
    if differences:
        raise RuntimeError(
            f"{path} was made with other settings: {'; '.join(differences)}. "
            "Set PONG_CHECKPOINTS to another folder, or delete this one."
        )
    check_arrays(path, arrays, run_arrays(start))
    try:
        return unpack_run(arrays, facts)
    except Exception as error:
        raise ValueError(f"{path}: incomplete ({error!r})") from error


def newest_checkpoint(folder, start, made_with):
    """Return the run and the history to go on from."""
    for path in sorted(folder.glob(CHECKPOINT_NAMES), reverse=True):
        try:
            run, history = read_checkpoint(path, start, made_with)
        except (ValueError, OSError) as error:
            print(f"{error}. Trying the one before.")
            if isinstance(error, ValueError):  # it was read, and is damaged
                with suppress(OSError):  # read-only: it stays where it is
                    os.replace(path, path.with_suffix(".damaged"))
        else:
            mean = mean_of_last(run.returns, 50)
            done = f"{run.decisions:,} decisions, mean return {mean:+.1f}"
            print(f"Going on from {path}: {done}.")
            return run, history
    return start, []


def lock_folder(folder):
    """Return a lock that keeps other trainings out of a folder."""
    lock = FileLock(folder / "lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        for left in folder.glob(".*.partial"):
            left.unlink()  # of a training that was killed while it wrote
    except Timeout:
        raise RuntimeError(
            f"Another training keeps its checkpoints in {folder}. Wait until "
            "it is done, or set PONG_CHECKPOINTS to another folder."
        ) from None
    except (NotImplementedError, OSError) as error:
        # Read-only? There may still be a checkpoint to go on from.
        print(f"No lock ({error}). Let only one training use {folder}.")
    return lock


def saver(folder, made_with, every):
    """Return a function that writes a checkpoint when one is due."""
    due, failing = time.monotonic() + every, False

    def save(run, history, at_once=False):
        nonlocal due, failing
        if at_once or time.monotonic() >= due:
            due = time.monotonic() + every
            try:
                save_checkpoint(folder, run, history, made_with)
                failing = False
            except OSError as error:
                if not failing:
                    tqdm.write(f"No checkpoint: {error}. Training goes on.")
                failing = True

    return save


@contextmanager
def open_checkpoints(folder, start, made_with, every=30):
    """Give where to go on: a Run, its history, and save(run, history).

    save writes when it is time to, or at once with at_once=True.
    RuntimeError: the folder is in use, or was, with other settings or shapes.

    Parameters
    ----------
    folder : str or Path; with None, go on from start, and keep nothing
    start : Run, to begin with if there is no checkpoint
    made_with : dict of settings; a checkpoint must be made with the same
    every : float, seconds between two checkpoints
    """
    if folder is None:
        yield start, [], lambda run, history, at_once=False: None
        return
    model, folder = start.agent.model, Path(folder).expanduser()
    shapes = {name: list(w.shape) for name, w in model.items()}
    made_with = json.loads(json.dumps(made_with | {"shapes": shapes}))
    lock = lock_folder(folder)
    try:
        newest = newest_checkpoint(folder, start, made_with)
        yield *newest, saver(folder, made_with, every)
    finally:
        lock.release()
