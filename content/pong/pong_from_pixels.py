# Made by `make notebooks` from content/pong-from-pixels.md: edit that.

import sys
from typing import NamedTuple

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm


def flow_diagram(boxes, arrows, labels):
    """Draw boxes, {name: (column, row, text)}, and arrows between them."""
    columns, rows = (1 + max(box[i] for box in boxes.values()) for i in (0, 1))
    fig, ax = plt.subplots(figsize=(1.6 * columns, 0.95 * rows))
    ax.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.6, -0.4))
    ax.axis("off")
    middle = {"ha": "center", "va": "center"}
    edge = {"boxstyle": "round,pad=0.5", "fc": "white", "ec": "black"}
    texts = {
        name: ax.text(column, row, text, bbox=edge, **middle)
        for name, (column, row, text) in boxes.items()
    }
    fig.canvas.draw()  # gives the boxes their size: arrows end at the edges
    for pair in (p for names in arrows for p in zip(names, names[1:])):
        (x0, y0), (x1, y1) = (boxes[name][:2] for name in pair)
        ends = (texts[name].get_bbox_patch() for name in pair)
        style = dict(zip(("patchA", "patchB"), ends), arrowstyle="-|>", fc="k")
        ax.annotate("", (x1, y1), (x0, y0), arrowprops=style)
        x, y, paper = (x0 + x1) / 2, (y0 + y1) / 2, {"color": "w", "pad": 1}
        ax.text(x, y, labels.get(pair, ""), bbox=paper, **middle)


def make_pong(video_folder=None, name_prefix="pong"):
    """Return a Pong environment; with a folder it records each game there."""
    if video_folder is None:
        return gym.make("ALE/Pong-v5")
    env = gym.make("ALE/Pong-v5", render_mode="rgb_array")
    # Every game, at its speed: 60 frames a second / 4 frames a decision = 15
    return gym.wrappers.RecordVideo(
        env, video_folder, lambda game: True, name_prefix=name_prefix, fps=15
    )


def frame_preprocessing(frame):
    """Return the court, 80×80: zeros (background), ones (paddles, ball)."""
    if frame.shape != (210, 160, 3) or frame.dtype != np.uint8:
        given = f"{frame.dtype} of shape {frame.shape}"
        raise ValueError(f"frame: not uint8 of shape (210, 160, 3): {given}")
    court = frame[35:195:2, ::2, 0]
    background = (court == 109) | (court == 144)
    return np.where(background, 0.0, 1.0)


def update_input(current, previous=None):
    """Return what has changed from court to court, shape (6400,)."""
    if previous is None:
        return np.zeros(current.size)
    return (current - previous).ravel()


def initialize_policy(n_inputs, n_hidden, rng):
    """Return random weights for a network with one hidden layer."""
    return {
        "W1": rng.standard_normal((n_hidden, n_inputs)) / np.sqrt(n_inputs),
        "W2": rng.standard_normal(n_hidden) / np.sqrt(n_hidden),
    }


def sigmoid(z):
    """Return the logistic function of `z`, for large |z| too."""
    return np.exp(-np.logaddexp(0.0, -z))


def policy_forward(x, model):
    """Return P(up) and the hidden layer, for one input or one per row."""
    hidden = np.maximum(0.0, x @ model["W1"].T)
    return sigmoid(hidden @ model["W2"]), hidden


def choose_action(p_up, rng):
    """Return a random action, 2 (up, y = 1) or 3 (down, y = 0), and y - p."""
    if not 0 <= p_up <= 1:
        raise ValueError(f"p_up: expected a probability, got {p_up}")
    moved_up = rng.random() < p_up
    return (2 if moved_up else 3), float(moved_up - p_up)


class Episode(NamedTuple):
    """What one game of T decisions leaves behind."""

    inputs: np.ndarray  # (T, 6400)
    hiddens: np.ndarray  # (T, 200)
    output_gradients: np.ndarray  # (T,), y - p
    rewards: np.ndarray  # (T,)


def play_episode(env, model, rng, seed=None):
    """Return the Episode of one game, played with the policy `model`."""
    frame, _ = env.reset(seed=seed)
    previous, decisions, game_over = None, [], False
    while not game_over:
        current = frame_preprocessing(frame)
        x = update_input(current, previous)
        p_up, hidden = policy_forward(x, model)
        action, output_gradient = choose_action(p_up, rng)
        frame, reward, terminated, truncated, _ = env.step(action)
        decisions.append((x, hidden, output_gradient, float(reward)))
        previous, game_over = current, terminated or truncated
    return Episode(*(np.array(column) for column in zip(*decisions)))


def discount_rewards(rewards, gamma):
    """Return the discounted rewards from each decision to the rally's end."""
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma: expected a number from 0 to 1, got {gamma}")
    returns, running_sum = np.zeros(len(rewards)), 0.0
    for t in reversed(range(len(rewards))):
        if rewards[t] != 0:  # a point: what comes later does not count
            running_sum = 0.0
        running_sum = rewards[t] + gamma * running_sum
        returns[t] = running_sum
    return returns


def standardize(returns):
    """Return `returns` with mean 0 and standard deviation 1."""
    if np.ptp(returns) == 0:
        return np.zeros(len(returns))
    return (returns - np.mean(returns)) / np.std(returns)


def policy_objective(model, inputs, moved_up, advantages):
    """Return the sum of each action's log-probability times its advantage."""
    p_up, _ = policy_forward(inputs, model)
    return np.sum(advantages * np.log(np.where(moved_up, p_up, 1.0 - p_up)))


def central_differences(objective, model, name, indices, step=1e-5):
    """Return derivatives of `objective(model)` by some weights of a layer."""
    derivatives = []
    for index in indices:  # positions in the flattened layer
        moved = {key: weights.copy() for key, weights in model.items()}
        weight = moved[name].reshape(-1)  # a view of the copy
        weight[index] += step
        above = objective(moved)
        weight[index] -= 2 * step
        derivatives.append((above - objective(moved)) / (2 * step))
    return np.array(derivatives)


def policy_backward(inputs, hiddens, output_gradients, model):
    """Return the gradient by the weights, from those by the logits (T,)."""
    pushes = np.outer(output_gradients, model["W2"]) * (hiddens > 0)
    return {"W1": pushes.T @ inputs, "W2": output_gradients @ hiddens}


def episode_gradient(episode, model, gamma):
    """Return the policy gradient of one episode, shaped like the model."""
    advantages = standardize(discount_rewards(episode.rewards, gamma))
    pushes = advantages * episode.output_gradients
    return policy_backward(episode.inputs, episode.hiddens, pushes, model)


def rmsprop_step(model, gradient, cache, learning_rate, decay):
    """Return the weights after one step uphill, and the new cache."""
    new_model, new_cache = {}, {}
    for name, weights in model.items():
        g = gradient[name]
        c = decay * cache[name] + (1 - decay) * g**2
        new_model[name] = weights + learning_rate * g / (np.sqrt(c) + 1e-5)
        new_cache[name] = c
    return new_model, new_cache


def train_reinforce(
    env, model, rng, seed,
    max_episodes, batch_size, learning_rate, decay, gamma,
):  # fmt: skip
    """Return new weights; per game: returns, running_mean, and decisions."""
    zeros = {name: np.zeros_like(weights) for name, weights in model.items()}
    total, cache, record, mean = zeros, zeros, [], None
    games = tqdm(range(1, max_episodes + 1), ncols=72, file=sys.stdout)
    for number in games:
        episode = play_episode(env, model, rng, seed if number == 1 else None)
        gradient = episode_gradient(episode, model, gamma)
        total = {name: total[name] + gradient[name] for name in zeros}
        if number % batch_size == 0:
            model, cache = rmsprop_step(
                model, total, cache, learning_rate, decay
            )
            total = zeros
        score = episode.rewards.sum()
        mean = score if mean is None else 0.99 * mean + 0.01 * score
        record.append((score, mean, len(episode.rewards)))
        games.set_postfix_str(f"mean return {mean:+.2f}")
    names = ("returns", "running_mean", "decisions")
    return model, dict(zip(names, np.array(record).T))
