# Made by `make notebooks` from content/many-games-at-once.md: edit that.

import time
import timeit
from functools import cache
from typing import NamedTuple

import numpy as np
from ale_py.vector_env import AtariVectorEnv
from scipy import sparse


def make_games(n_games, n_groups=2, sticky=0.25):
    """Return groups of games of Pong, each with an engine of its own."""
    if n_games < 1 or n_games % n_groups or not 0 <= sticky <= 1:
        raise ValueError(f"n_games: expected {n_groups} * n; sticky: 0 to 1")
    return [
        AtariVectorEnv(
            "pong",
            num_envs=int(n_games // n_groups),
            num_threads=2,
            img_height=210,
            img_width=160,
            grayscale=True,
            stack_num=1,
            frameskip=4,
            maxpool=False,
            noop_max=0,
            use_fire_reset=False,
            repeat_action_probability=sticky,
        )
        for _ in range(n_groups)
    ]


def reset(games, seed):
    """Return the first pictures of new games, n × 210 × 160 for each group."""
    if any(group.closed for group in games):
        raise RuntimeError("these games are closed: call `make_games`")
    if not 0 <= seed == int(seed) < 2e9:  # with -1, no game repeats
        raise ValueError("seed: expected a whole number from 0 to 2e9")
    pictures = []
    for group in games:
        frames, _ = group.reset(seed=int(seed))
        pictures.append(frames[:, 0])  # one picture, not a stack of them
        seed += group.num_envs
    return pictures


def close(games):
    """End all games."""
    for group in games:
        group.close()


def find_objects(frames):
    """Return which cells hold an object: bool, shape (n, 80, 32)."""
    if frames.shape[1:] != (210, 160) or frames.dtype != np.uint8:
        raise ValueError("frames: expected uint8 of shape n × 210 × 160")
    # Every second row of the court, and the columns from paddle to paddle.
    # Four neighbors in a row are four bytes, and here one number.
    cells = frames[:, 34:194:2, 16:144].view(np.uint32)
    # The court is 107 in the first picture of a game, then 87: 4 × 0x57.
    return (cells != 0x6B6B6B6B) & (cells != 0x57575757)


class Scene(NamedTuple):
    """What the agent knows in each of n games when it has to decide."""

    previous: np.ndarray  # bool, (n, 80, 32): objects in the older picture
    current: np.ndarray  # bool, (n, 80, 32): objects in the newest picture
    last_actions: np.ndarray  # bool, (n, 2): was it up, was it down?
    game_over: np.ndarray  # bool, (n,): the next action will be ignored


def first_scene(frames):
    """Return the scene at the start of n games: nothing has moved yet."""
    current = find_objects(frames)
    n = len(current)
    return Scene(current, current, np.zeros((n, 2), bool), np.zeros(n, bool))


def next_scene(scene, actions, frames, game_over):
    """Return the scene after one more decision (0 up, 1 down, 2 stay)."""
    current = find_objects(frames)
    # After a game's last picture comes the first one of the next game.
    new = scene.game_over
    previous = np.where(new[:, None, None], current, scene.current)
    last_actions = (actions[:, None] == [0, 1]) & ~new[:, None]
    return Scene(previous, current, last_actions, game_over)


@cache
def mirror_order():
    """Return for each of the 5,123 inputs the number of its mirror image."""
    pictures = np.arange(2 * 80 * 32).reshape(2, 80, 32)[:, ::-1].ravel()
    # Up and down change places; the constant 1 stays.
    order = np.concatenate([pictures, len(pictures) + np.array([1, 0, 2])])
    order = order.astype(np.int32)
    order.flags.writeable = False  # everybody gets the same array
    return order


def encode(scene):
    """Return the network's inputs, and those of the mirrored court.

    Two csr_matrix, float32, shape (n, 5123): two pictures, last action, 1.
    """
    n = len(scene.current)
    pictures = (scene.previous.reshape(n, -1), scene.current.reshape(n, -1))
    dense = np.hstack([*pictures, scene.last_actions, np.ones((n, 1), bool)])
    numbers = np.flatnonzero(dense).astype(np.int32)  # counted row after row
    borders = dense.shape[1] * np.arange(n + 1)  # the rows' first numbers
    starts = np.searchsorted(numbers, borders).astype(np.int32)
    columns = numbers % dense.shape[1]
    ones = np.ones(len(columns), np.float32)
    return tuple(
        sparse.csr_matrix((ones, numbered, starts), shape=dense.shape)
        for numbered in (columns, mirror_order()[columns])
    )


def median_time(function, n=7):
    """Return the median duration of n calls, in milliseconds."""
    seconds = timeit.repeat(function, number=1, repeat=n)
    return 1000 * float(np.median(seconds))


def drift(group, actions):
    """Return the paddles' displacements after each action, pixels down."""
    rows = []
    for action in [0] * 5 + list(actions):  # let the games begin first
        frames, *_ = group.step(np.full(group.num_envs, action, np.int32))
        paddles = find_objects(frames[:, 0])[:, :, -1]
        rows.append([2 * np.median(np.flatnonzero(p)) for p in paddles])
    return np.array(rows[5:]) - rows[4]


def initialize_model(rng, n_hidden=200, stay_bias=-1.0):
    """Return random weights, float32; outputs: up, down, stay, and value."""
    W1 = 0.1 * rng.standard_normal((2 * 80 * 32 + 3, n_hidden))
    W2 = 0.1 / np.sqrt(n_hidden) * rng.standard_normal((n_hidden, 4))
    b2 = np.array([0.0, 0.0, stay_bias, 0.0])
    model = {"W1": W1, "W2": W2, "b2": b2}
    return {name: w.astype(np.float32) for name, w in model.items()}


def forward(inputs, model):
    """Return logits (n, 3), values (n,), and the hidden layer (2n, 200)."""
    sums = [matrix @ model["W1"] for matrix in inputs]
    hidden = np.maximum(np.vstack(sums), 0)
    outputs, mirrored = np.split(hidden @ model["W2"] + model["b2"], 2)
    outputs = outputs + mirrored[:, [1, 0, 2, 3]]  # its up is our down
    return outputs[:, :-1], outputs[:, -1], hidden


def log_softmax(logits):
    """Return the logarithm of the probability of each action."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def choose_actions(logits, rng=None):
    """Return an action for each game, and its log-probability.

    0 is up, 1 down, 2 stay. Without rng it is the most probable one: greedy.
    """
    log_probs = log_softmax(np.asarray_chkfinite(logits))
    if rng is None:
        actions = log_probs.argmax(axis=1)
    else:
        below = np.cumsum(np.exp(log_probs[:, :-1]), axis=1)
        actions = (rng.random((len(logits), 1)) >= below).sum(axis=1)
    return actions, log_probs[np.arange(len(logits)), actions]


class Experience(NamedTuple):
    """T decisions in each of n games, as they happened."""

    inputs: list  # from `encode`, for each step and in it each group
    actions: np.ndarray  # int, (T, n): 0 up, 1 down, 2 stay
    log_probs: np.ndarray  # (T, n): of these actions
    values: np.ndarray  # (T + 1, n): the last row judges what came last
    rewards: np.ndarray  # (T, n)
    ignored: np.ndarray  # bool, (T, n): the emulator ignored the action
    game_over: np.ndarray  # bool, (T, n): the game ended with it


def act(group, scene, model, rng):
    """Send actions to a group; return inputs, actions, log_probs, values."""
    inputs = encode(scene)
    logits, values, _ = forward(inputs, model)
    actions, log_probs = choose_actions(logits, rng)
    group.send(np.array([2, 3, 0], np.int32)[actions])  # up, down, stay
    return inputs, actions, log_probs, values


def collect(group, scene, decision):
    """Return the next scene, and the record of a decision from `act`."""
    frames, rewards, terminated, truncated, _ = group.recv()
    game_over = terminated | truncated
    rewards = np.where(scene.game_over, 0, rewards).astype(np.float32)
    record = (*decision, rewards, scene.game_over, game_over)
    return next_scene(scene, decision[1], frames[:, 0], game_over), record


def play(games, scenes, weights, rng, n_steps, every=1):
    """Return the Experience of n_steps decisions, and the scenes after them.

    weights is an iterator of models: after `every` steps the next one plays.
    It is used up, and the last one judges the last scenes.
    """
    scenes, records = list(scenes), []
    decisions = [None] * len(games)
    model = next(weights)
    for t in range(n_steps + 1):
        if t and t % every == 0:
            model = next(weights, model)
        for k, group in enumerate(games):
            if t > 0:
                scenes[k], record = collect(group, scenes[k], decisions[k])
                records.append(record)
            if t < n_steps:
                decisions[k] = act(group, scenes[k], model, rng)
    *_, model = model, *weights
    last = [forward(encode(scene), model)[1] for scene in scenes]
    inputs, *columns = zip(*records)
    columns = [np.array(x).reshape(n_steps, -1) for x in columns]
    actions, log_probs, values, *rest = columns
    values = np.vstack([values, np.concatenate(last)])
    experience = Experience(list(inputs), actions, log_probs, values, *rest)
    return experience, scenes


def random_play_speed(games, n_steps):
    """Return the decisions per second of random play in games that go on."""
    rng = np.random.default_rng(0)
    n_games = sum(group.num_envs for group in games)
    start = time.perf_counter()
    for _ in range(n_steps):
        for group in games:
            group.send(rng.integers(2, 4, group.num_envs).astype(np.int32))
        for group in games:
            group.recv()
    return n_steps * n_games / (time.perf_counter() - start)
