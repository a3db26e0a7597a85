# Made by `make notebooks` from content/ppo-in-numpy.md: edit that.

from typing import NamedTuple

import numpy as np
from scipy import sparse

from pong.many_games_at_once import forward, log_softmax


def gae(rewards, values, ends, gamma, gae_lambda):
    """Return generalized advantage estimates, shape (T, n).

    Schulman et al., 2016, equation 16; values has T + 1 rows, ends is bool.
    """
    T = len(rewards)
    if len(values) != T + 1 or len(ends) != T:
        raise ValueError(f"values, ends: expected {T + 1} and {T} rows")
    if not (0 <= gamma <= 1 and 0 <= gae_lambda <= 1):
        raise ValueError("gamma, gae_lambda: expected numbers from 0 to 1")
    advantages = np.zeros_like(values, np.result_type(values, 0.0))
    goes_on = 1 - np.asarray(ends, dtype=advantages.dtype)
    for t in reversed(range(T)):
        surprise = rewards[t] + gamma * goes_on[t] * values[t + 1] - values[t]
        fading = gamma * gae_lambda * goes_on[t]
        advantages[t] = surprise + fading * advantages[t + 1]
    return advantages[:T]


class Rollout(NamedTuple):
    """Decisions to learn from, one row for each."""

    inputs: tuple  # two csr_matrix, (n, 5123): the scene, its mirror image
    actions: np.ndarray  # int, (n,): 0 up, 1 down, 2 stay
    log_probs: np.ndarray  # (n,): of these actions, when they were chosen
    advantages: np.ndarray  # (n,): A, with mean 0 and standard deviation 1
    returns: np.ndarray  # (n,): what the value should have been


def make_rollout(experience, settings):
    """Return the Rollout of an Experience, and the explained variance."""
    ends = (experience.rewards != 0) | experience.game_over
    fading = settings["gamma"], settings["gae_lambda"]
    advantages = gae(experience.rewards, experience.values, ends, *fading)
    returns = advantages + experience.values[:-1]
    counts = np.flatnonzero(~experience.ignored)
    columns = (experience.actions, experience.log_probs, advantages, returns)
    columns = [column.ravel()[counts] for column in columns]
    actions, log_probs, advantages, returns = columns
    explained = 1 - np.var(advantages) / (np.var(returns) + 1e-8)
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    sides = zip(*experience.inputs)
    inputs = tuple(sparse.vstack(side, "csr")[counts] for side in sides)
    rollout = Rollout(inputs, actions, log_probs, advantages, returns)
    return rollout, float(explained)


def ppo_loss(model, batch, clip_coef, entropy_coef, value_coef):
    """Return the mean PPO loss of a Rollout, as the equation has it."""
    logits, values, _ = forward(batch.inputs, model)
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    chosen = probs[np.arange(len(values)), batch.actions]
    ratio = chosen / np.exp(batch.log_probs)
    clipped = np.clip(ratio, 1 - clip_coef, 1 + clip_coef)
    policy = np.minimum(ratio * batch.advantages, clipped * batch.advantages)
    entropy = -(probs * np.log(probs)).sum(axis=1)
    value = (values - batch.returns) ** 2
    return np.mean(-policy + value_coef * value - entropy_coef * entropy)


def ppo_gradients(logits, values, batch, clip_coef, entropy_coef, value_coef):
    """Return the loss's derivatives by logits and values, and metrics.

    Schulman et al., 2017, equations 7 and 9; KL and entropy in nats.
    """
    if not clip_coef > 0:  # with NaN, nothing would be clipped
        raise ValueError("clip_coef: expected more than 0")
    n = len(values)
    log_probs = log_softmax(logits)
    probs = np.exp(log_probs)
    chosen = np.eye(logits.shape[1], dtype=logits.dtype)[batch.actions]
    log_ratio = (log_probs * chosen).sum(axis=1) - batch.log_probs
    ratio = np.exp(log_ratio)
    limit = 1 + clip_coef * np.sign(batch.advantages)
    beyond = (ratio - limit) * np.sign(batch.advantages) > 0
    slope = np.where(beyond, 0, -ratio * batch.advantages)
    entropy = -(probs * log_probs).sum(axis=1, keepdims=True)
    logit_gradients = slope[:, None] * (chosen - probs)
    logit_gradients += entropy_coef * probs * (log_probs + entropy)
    value_gradients = 2 * value_coef * (values - batch.returns)
    metrics = {
        "approx_kl": float(np.mean(ratio - 1 - log_ratio)),
        "clip_fraction": float(np.mean(np.abs(ratio - 1) > clip_coef)),
        "entropy": float(np.mean(entropy)),
    }
    return logit_gradients / n, value_gradients / n, metrics


def backward(inputs, hidden, logit_gradients, value_gradients, model):
    """Return the gradient by the weights, shaped like the model."""
    outputs = np.column_stack([logit_gradients, value_gradients])
    outputs = np.concatenate([outputs, outputs[:, [1, 0, 2, 3]]])
    hidden_gradients = (outputs @ model["W2"].T) * (hidden > 0)
    return {
        "W1": sparse.vstack(inputs, "csr").T @ hidden_gradients,
        "W2": hidden.T @ outputs,
        "b2": outputs.sum(axis=0),
    }


class Agent(NamedTuple):
    """A network, and what its optimizer remembers."""

    model: dict  # of float32 arrays
    mean: dict  # m, running means of the gradient
    variance: dict  # s, running means of its square (second moments)
    n_updates: int  # steps that the optimizer has taken


def new_agent(model):
    """Return an agent that has learned nothing yet."""
    zeros = {name: np.zeros_like(weights) for name, weights in model.items()}
    return Agent(model, zeros, zeros, 0)


def adam_array(w, m, s, g, scale, rate, tiny):
    """Return the new w, m, and s of one array, computed part by part."""
    out = [np.empty(w.shape, w.dtype) for _ in range(3)]
    new_w, new_m, new_s = (array.reshape(-1) for array in out)
    w, m, s, g = (array.reshape(-1) for array in (w, m, s, g))
    for i in range(0, w.size, 32768):
        k = slice(i, i + 32768)
        part = g[k] * scale
        new_m[k] = m[k] + np.float32(0.1) * (part - m[k])
        new_s[k] = s[k] + np.float32(0.001) * (part * part - s[k])
        new_w[k] = w[k] - rate * new_m[k] / (np.sqrt(new_s[k]) + tiny)
    return out


def adam_step(agent, gradient, learning_rate, max_grad_norm, faster=()):
    """Return the agent after a step of Adam (Kingma and Ba, 2015, part 2).

    The arrays that `faster` names go twice as far.
    """
    norm = np.sqrt(sum(float(np.vdot(g, g)) for g in gradient.values()))
    n = agent.n_updates + 1
    if not np.isfinite(norm):
        raise FloatingPointError(f"NaN or inf in the gradient of update {n:,}")
    if not max_grad_norm > 0:  # with NaN, nothing would be shortened
        raise ValueError("max_grad_norm: expected more than 0")
    scale = np.float32(min(1.0, max_grad_norm / (norm + 1e-8)))
    correction = np.sqrt(1 - 0.999**n)
    rate = np.float32(learning_rate * correction / (1 - 0.9**n))
    tiny = np.float32(1e-5 * correction)
    new = Agent({}, {}, {}, n)
    for name, w in agent.model.items():
        old = (w, agent.mean[name], agent.variance[name], gradient[name])
        arrays = adam_array(*old, scale, rate * (1 + (name in faster)), tiny)
        new.model[name], new.mean[name], new.variance[name] = arrays
    return new


def minibatches(rollout, settings, rng):
    """Yield shuffled parts of a rollout; in an epoch every row comes once."""
    for _ in range(settings["epochs"]):
        order = rng.permutation(len(rollout.actions))
        for rows in np.array_split(order, settings["n_minibatches"]):
            inputs = tuple(matrix[rows] for matrix in rollout.inputs)
            yield Rollout(inputs, *(column[rows] for column in rollout[1:]))


def update(agent, batch, learning_rate, max_grad_norm, faster=(), **coefs):
    """Return the agent after one step on a minibatch, and the metrics."""
    logits, values, hidden = forward(batch.inputs, agent.model)
    *slopes, metrics = ppo_gradients(logits, values, batch, **coefs)
    gradient = backward(batch.inputs, hidden, *slopes, agent.model)
    how = learning_rate, max_grad_norm, faster
    return adam_step(agent, gradient, *how), metrics
