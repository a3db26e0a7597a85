# Made by `make notebooks` from content/inside-the-agent.md: edit that.

import os
from contextlib import closing
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pandas as pd
from imageio_ffmpeg import write_frames
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import sparse

from pong.many_games_at_once import (
    choose_actions,
    close,
    encode,
    first_scene,
    forward,
    log_softmax,
    mirror_order,
    next_scene,
)


def make_envs(n, **settings):
    """Return n emulators of the standard game, or of a variant."""
    name, gray = "ALE/Pong-v5", "grayscale"
    return [gym.make(name, obs_type=gray, **settings) for _ in range(n)]


class Moment(NamedTuple):
    """One decision in each of n games, or n decisions of one game."""

    games: np.ndarray  # n numbers: which games these are
    inputs: tuple  # what the network saw, and its mirror image: n × 5123
    logits: np.ndarray  # n × 3, for up, down, and stay
    values: np.ndarray  # n, in points
    actions: np.ndarray  # n: 0 for up, 1 for down, 2 for stay
    frames: np.ndarray  # n × 210 × 160, before the decision
    ram: np.ndarray  # n × 128 bytes: the emulator's memory at the same time
    rewards: np.ndarray  # n: what came of the decision

    def take(self, rows):
        """Return some of the rows."""
        columns = self._asdict()
        inputs = tuple(matrix[rows] for matrix in columns.pop("inputs"))
        columns = {name: c[rows] for name, c in columns.items()}
        return Moment(inputs=inputs, **columns)


def play_moments(
    envs, seeds, model, see=lambda frames: frames, recall=lambda scene: scene
):
    """Yield each Moment of greedy games, one game in each environment."""
    pairs = zip(envs, seeds, strict=True)
    frames = np.stack([env.reset(seed=s)[0] for env, s in pairs])
    scene, going = first_scene(see(frames)), np.arange(len(envs))
    while len(going):
        inputs = encode(recall(scene))
        logits, values, _ = forward(inputs, model)
        actions, _ = choose_actions(logits)
        ram = np.stack([env.unwrapped.ale.getRAM() for env in envs])
        shown, rewards = frames.copy(), np.zeros(len(envs))
        over = np.zeros(len(envs), bool)
        for i in going:
            action = (2, 3, 0)[actions[i]]  # up, down, stay
            frames[i], rewards[i], *ended, _ = envs[i].step(action)
            over[i] = any(ended)  # terminated or truncated
        thoughts = logits, values, actions
        now = np.arange(len(envs)), inputs, *thoughts, shown, ram, rewards
        yield Moment(*now).take(going)
        scene = next_scene(scene, actions, see(frames), np.zeros_like(over))
        going = going[~over[going]]


def join(moments):
    """Return several Moments as one, row below row."""
    columns = dict(zip(Moment._fields, zip(*moments)))
    pairs = columns.pop("inputs")
    inputs = tuple(sparse.vstack(part, "csr") for part in zip(*pairs))
    columns = {name: np.concatenate(c) for name, c in columns.items()}
    return Moment(inputs=inputs, **columns)


def watch(model, seeds):
    """Return a Moment for each game, with a row for each decision."""
    envs = make_envs(len(seeds))
    played = play_moments(envs, seeds, model)
    whole = join(m._replace(frames=m.ram[:, :0]) for m in played)
    close(envs)
    return [whole.take(whole.games == k) for k in range(len(seeds))]


def responses(inputs, hidden):
    """Return the correlation of units (n × k) with inputs (n × D): D × k."""
    # How often a cell is set. Rounding may make "always" a little more than 1.
    share = np.minimum(np.asarray(inputs.mean(axis=0)).T, 1)
    covariance = inputs.T @ (hidden - hidden.mean(axis=0)) / len(hidden)
    scale = np.sqrt(share * (1 - share)) * hidden.std(axis=0)
    zeros = np.zeros_like(covariance)
    return np.divide(covariance, scale, out=zeros, where=scale > 1e-9)


def draw_field(ax, weights, visited):
    """Draw 5123 numbers, one for each cell: positive ones white."""
    pictures = np.where(visited, weights, 0)[:5120].reshape(2, 80, 32)
    middle = visited[:5120].reshape(2, 80, 32)[..., 2:-2]
    limit = np.percentile(np.abs(pictures[..., 2:-2][middle]), 98)
    gap = np.full((80, 2), np.nan)
    both = np.concatenate([pictures[0], gap, pictures[1]], axis=1)
    ax.imshow(both, cmap="gray", vmin=-limit, vmax=limit, aspect=0.5)
    ax.axis("off")


def draw_background(moments):
    """Return the labels (448 × 640 × 3), and P(up) and value as strips."""
    fig = Figure(figsize=(6.4, 4.48), dpi=100, layout="none")
    for x, y, text in (
        (416, 20, "older frame"),
        (568, 20, "newer frame"),
        (496, 214, "probability of up, 0 to 1"),
        (496, 332, "value, −1.5 to 1.5 points"),
    ):
        fig.text(x / 640, 1 - y / 448, text, ha="center", size=12.5)
    FigureCanvasAgg(fig).draw()
    whole, strips = join(moments), []
    p_up = np.exp(log_softmax(whole.logits))[:, 0]
    at = np.arange(-128, 4 * len(p_up) + 128) / 4  # decision of each column
    for trace, low, high, color in (
        (p_up, 0, 1, (0, 107, 164)),
        (whole.values, -1.5, 1.5, (255, 128, 14)),
    ):
        height = np.interp(at, np.arange(len(trace)), trace, left=0, right=0)
        row = np.linspace(high, low, 80)[:, None]
        filled = (row * (row - height) <= 0)[..., None]  # from zero
        strips.append(np.where(filled, np.uint8(color), np.uint8(255)))
    return np.array(fig.canvas.buffer_rgba())[..., :3], strips


def make_frames(moments):
    """Yield the frames of the video of a game: uint8, 448 × 640 × 3."""
    palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    palette[[87, 107]] = (144, 72, 17)  # the colors of the console: court,
    palette[[147, 148]] = (92, 186, 92), (213, 130, 74)  # both paddles
    background, strips = draw_background(moments)
    for t, moment in enumerate(moments):
        frame, court = background.copy(), palette[moment.frames[0]]
        frame[28:448, :320] = court.repeat(2, axis=0).repeat(2, axis=1)
        cells = moment.inputs[0][0, :5120].toarray().reshape(2, 80, 32)
        for picture, x in zip(cells, (352, 504)):
            large = picture.repeat(2, axis=0).repeat(4, axis=1)
            frame[28:188, x : x + 128] = (235 * large + 10)[..., None]
        for strip, y in zip(strips, (224, 342)):
            part = strip[:, 4 * t : 4 * t + 256].copy()
            part[:, 128:] = 255 - (255 - part[:, 128:]) // 3  # pale
            part[:, 127:129] = 0  # now
            frame[y : y + 80, 368:624] = part
        yield frame


def write_video(path, frames):
    """Write frames of 448 × 640 × 3 to an MP4 file (H.264), 15 a second."""
    # A key frame every second: the player can jump there at once.
    keys = "-g 15 -movflags +faststart -f mp4".split()
    writer = write_frames(f"{path}~", (640, 448), fps=15, output_params=keys)
    with closing(writer):
        writer.send(None)
        for frame in frames:
            if frame.shape != (448, 640, 3) or frame.dtype != np.uint8:
                raise ValueError("frames: expected uint8, 448 × 640 × 3")
            writer.send(np.ascontiguousarray(frame))
    os.replace(f"{path}~", path)  # complete, or not there


def rally_outcomes(rewards):
    """Return how each decision's rally ended: 1, -1, or 0 if it did not."""
    ends = np.flatnonzero(rewards)
    following = np.searchsorted(ends, np.arange(len(rewards)))
    return np.append(rewards[ends], 0)[following]


def mean_interval(values, games, rng, n_samples=10_000):
    """Return the 95 % interval of a mean: whole games are drawn anew."""
    _, game = np.unique(games, return_inverse=True)
    sums, counts = np.bincount(game, values), np.bincount(game)
    drawn = rng.integers(0, len(sums), (n_samples, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return np.percentile(means, [2.5, 97.5]).tolist()


def saliency(inputs, model, weights):  # of up, down, stay, and the value
    """Return the gradient of a weighted sum of the outputs: n × 5123."""
    weights = np.asarray(weights, model["W2"].dtype)
    parts = []
    for matrix, w in zip(inputs, (weights, weights[[1, 0, 2, 3]])):
        active = matrix @ model["W1"] > 0
        parts.append((active * (model["W2"] @ w)) @ model["W1"].T)
    return parts[0] + parts[1][:, mirror_order()]  # the mirror undoes itself


def read_ram(ram):
    """Return columns and rows of the court's objects (n, in pixels)."""
    ram = np.asarray(ram, dtype=float)  # bytes would wrap around
    x, y = ram[:, 49] - 49, ram[:, 54] - 48
    # Between two points the ball is parked, and one of its bytes is zero.
    in_play = (ram[:, 49] > 0) & (ram[:, 54] > 0)
    return {
        "ball x": np.where(in_play, x, np.nan),
        "ball y": np.where(in_play, y, np.nan),
        "own paddle y": ram[:, 51] - 48,
        "opponent y": ram[:, 50] - 49,
    }


def object_mask(frames, name):
    """Return which pixels of the court show an object: n × 210 × 160."""
    # The very first picture of a game shows the own paddle in another gray.
    grays = {"ball": [236], "opponent": [148], "own paddle": [147, 121]}
    mask = np.zeros(frames.shape, bool)  # walls and score use these, too
    mask[:, 34:194] = np.isin(frames[:, 34:194], grays[name])
    return mask


def probe_targets(ram):  # T × 128, of one game
    """Return a row of targets for each decision with a ball in play."""
    truth = pd.DataFrame(read_ram(ram))
    for axis in "xy":
        move = truth[f"ball {axis}"].diff()
        # A new ball is no movement: none moves that far in a decision.
        truth[f"ball {axis} velocity"] = move.where(move.abs() < 20)
    return truth.dropna()


def fit_probe(features, targets, ridge=0.01):  # n × D, n × k
    """Return a linear probe: a function from features to predictions."""
    center, mean = features.mean(axis=0), targets.mean(axis=0)
    scale = features.std(axis=0) + 1e-6
    A = ((features - center) / scale).astype(np.float64)
    penalty = ridge * len(A) * np.eye(A.shape[1])
    coefficients = np.linalg.solve(A.T @ A + penalty, A.T @ (targets - mean))
    return lambda rows: (rows - center) / scale @ coefficients + mean


def r_squared(predictions, targets):
    """Return the share of each target's variance that is explained: k."""
    errors = ((targets - predictions) ** 2).sum(axis=0)
    return 1 - errors / ((targets - targets.mean(axis=0)) ** 2).sum(axis=0)


def cross_validate(features, targets):  # lists, by game
    """Return R² in each game, with a probe of the other games: games × k."""
    scores = []
    for k, (held_out, truth) in enumerate(zip(features, targets)):
        lists = (a[:k] + a[k + 1 :] for a in (features, targets))
        probe = fit_probe(*map(np.concatenate, lists))
        scores.append(r_squared(probe(held_out), truth))
    return np.array(scores)
