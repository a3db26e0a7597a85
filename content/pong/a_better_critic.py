# Made by `make notebooks` from content/a-better-critic.md: edit that.

from functools import cache
from itertools import pairwise

import numpy as np
from scipy import sparse

from pong.many_games_at_once import encode
from pong.ppo_in_numpy import adam_step, gae, new_agent


@cache
def measures():
    """Return a matrix by which inputs become counts and sums: 5123 × 18."""
    y, x = np.mgrid[-1:1:80j, -1:1:32j]  # down, and to the right
    parts = []
    for where in (x == -1, abs(x) < 1, x == 1):  # opponent, ball, agent
        parts += [where, where * y, where * x]
    picture = np.stack(parts, axis=2).reshape(-1, 9)
    both = np.kron(np.eye(2), picture)  # the older one, the newer one
    return np.vstack([both, np.zeros((3, 18))]).astype(np.float32)


def find_places(inputs):
    """Return where things are in n rows of inputs, from -1 to 1: n × 10.

    For both pictures, three heights; then the ball's column; is there one?
    """
    sums = np.asarray(inputs @ measures()).reshape(-1, 6, 3)
    counts, y, x = np.moveaxis(sums, 2, 0)
    y, x = (total / np.maximum(counts, 1) for total in (y, x))
    return np.hstack([y, x[:, 1::3], np.minimum(counts[:, 1::3], 1)])


def look(experience, scenes, before=None):
    """Return what the critic sees, and what the next rollout needs of it.

    The first is float32, shape (2, T + 1, n, 22): as it is, and mirrored.
    """
    sides = zip(zip(*experience.inputs), zip(*map(encode, scenes)))
    rows = [sparse.vstack([*most, *end], "csr") for most, end in sides]
    shape = 2, *experience.values.shape, 10
    places = np.stack([find_places(side) for side in rows]).reshape(shape)
    older, point = before or (places[:, [0, 0, 0]], np.zeros(shape[2]))
    points = [point]
    for reward in experience.rewards:
        points.append(np.where(reward != 0, reward, 0.97 * points[-1]))
    path = np.concatenate([older, places], axis=1)
    both = np.stack([points, experience.values], axis=2)  # of either side
    both = np.broadcast_to(both, (*shape[:3], 2))
    seen = np.concatenate([places, path[:, :-3], both], 3, dtype=np.float32)
    return seen, (path[:, -4:-1], points[-1])  # path has three scenes more


def new_critic(rng, sizes=(22, 64, 64, 1)):
    """Return an Agent with random weights, which has learned nothing."""
    model = {}
    for k, (n, m) in enumerate(pairwise(sizes)):
        weights = np.sqrt(2 / n) * rng.standard_normal((n, m))
        model[f"W{k}"] = weights.astype(np.float32)
        model[f"b{k}"] = np.zeros(m, np.float32)
    return new_agent(model)


def forecast(seen, model):
    """Return the activations of all layers; the last are the values."""
    layers = [seen]
    for k in range(len(model) // 2):
        total = layers[-1] @ model[f"W{k}"] + model[f"b{k}"]
        layers.append(np.maximum(total, 0))
    return [*layers[:-1], np.tanh(total)[..., 0]]


def forecast_backward(layers, slopes, model):
    """Return the gradient by the weights; slopes are those of the values."""
    *layers, values = layers
    gradient, slopes = {}, (slopes * (1 - values**2))[:, None]
    for k in reversed(range(len(layers))):
        gradient[f"W{k}"] = layers[k].T @ slopes
        gradient[f"b{k}"] = slopes.sum(axis=0)
        slopes = slopes @ model[f"W{k}"].T * (layers[k] > 0)
    return gradient


N_KEPT = 4  # rollouts to learn from; more: steadier, and older
LAMBDA = 0.95  # more: trusts outcomes more, and its own forecasts less


def hindsight(kept, model, gamma=1.0):
    """Return what was seen, (2, N, 22), and targets for its values, (N,)."""
    rows, returns = [], []
    for seen, rewards, ends, counts in kept:
        values = forecast(seen[0], model)[-1]
        advantages = gae(rewards, values, ends, gamma, LAMBDA)
        rows.append(seen[:, :-1][:, counts])
        returns.append((values[:-1] + advantages)[counts])
    return np.concatenate(rows, axis=1), np.concatenate(returns)


N_STEPS, N_ROWS = 128, 256  # steps, decisions in each; more: fits closer
RATE = 4e-3  # more: learns faster, until it overshoots


def learn_values(network, seen, returns, rng, learning_rate):
    """Return the critic's network after N_STEPS on N_ROWS decisions each."""
    for _ in range(N_STEPS):
        rows = rng.integers(0, len(returns), N_ROWS)
        sides = rng.integers(0, 2, N_ROWS)
        layers = forecast(seen[sides, rows], network.model)
        slopes = 2 / N_ROWS * (layers[-1] - returns[rows])
        gradient = forecast_backward(layers, slopes, network.model)
        network = adam_step(network, gradient, learning_rate, 0.5)
    return network


class Critic:
    """Judges rollouts from where things are, and learns from the last ones."""

    def __init__(self, network, rng, gamma=1.0):
        self.network, self.rng, self.gamma = network, rng, gamma
        self.kept, self.before = [], None

    def __call__(self, experience, scenes, remaining):
        """Return the Experience with the critic's values, then learn."""
        seen, self.before = look(experience, scenes, self.before)
        values = forecast(seen[0], self.network.model)[-1]
        ends = (experience.rewards != 0) | experience.game_over
        new = seen, experience.rewards, ends, ~experience.ignored
        self.kept = [*self.kept, new][-N_KEPT:]
        data = hindsight(self.kept, self.network.model, self.gamma)
        how = self.rng, RATE * remaining
        self.network = learn_values(self.network, *data, *how)
        return experience._replace(values=values)
