"""The functions of "PPO in NumPy"."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from pong import ppo_in_numpy as ppo
from pong.many_games_at_once import Experience, forward, log_softmax
from pong.pong_from_pixels import central_differences


def small_case(rng, ratios, advantages):
    """Return a network in float64, and a Rollout with these ratios."""
    n, shapes = len(ratios), {"W1": (12, 5), "W2": (5, 4), "b2": (4,)}
    model = {k: rng.standard_normal(s) / 2 for k, s in shapes.items()}
    dense = rng.random((2, n, 12)) * (rng.random((2, n, 12)) < 0.5)
    inputs = tuple(map(sparse.csr_matrix, dense))
    actions, returns = rng.integers(3, size=n), rng.uniform(-1, 1, n)
    log_probs = log_softmax(forward(inputs, model)[0])[range(n), actions]
    log_probs -= np.log(ratios)
    return model, ppo.Rollout(inputs, actions, log_probs, advantages, returns)


@pytest.mark.parametrize("weight", [1, -1, 0])
@pytest.mark.parametrize("ratios", [(0.85, 1.15), (1.3, 1.6), (0.5, 0.7), (0.5, 1.6)])
def test_gradient_agrees_with_finite_differences(ratios, weight):
    rng, coefficients = np.random.default_rng(8), (0.2, 0.3, 0.5)
    advantages = weight * rng.uniform(0.5, 2, 9)
    model, batch = small_case(rng, rng.uniform(*ratios, 9), advantages)
    logits, values, hidden = forward(batch.inputs, model)
    *slopes, _ = ppo.ppo_gradients(logits, values, batch, *coefficients)
    analytic = ppo.backward(batch.inputs, hidden, *slopes, model)
    for name, weights in model.items():
        numerical = central_differences(
            lambda m: ppo.ppo_loss(m, batch, *coefficients),
            *(model, name, range(weights.size)),
            step=1e-6,
        )
        error = np.linalg.norm(analytic[name].ravel() - numerical)
        assert error < 1e-6 * np.linalg.norm(numerical)


def test_metrics():
    rng, ratios = np.random.default_rng(4), np.tile([0.7, 0.9, 1.1, 1.5], 10)
    model, batch = small_case(rng, ratios, rng.standard_normal(40))
    logits, values, _ = forward(batch.inputs, model)
    *_, metrics = ppo.ppo_gradients(logits, values, batch, 0.2, 0.0, 0.5)
    kl = np.mean(ratios - 1 - np.log(ratios))
    assert_allclose(metrics["approx_kl"], kl, atol=1e-12)
    assert metrics["clip_fraction"] == 0.5
    *_, metrics = ppo.ppo_gradients(0 * logits, values, batch, 0.2, 0.0, 0.5)
    assert_allclose(metrics["entropy"], np.log(3))


def brute_force_gae(rewards, values, ends, gamma, gae_lambda):
    """Return the sum over later surprises, up to the end of the rally."""
    advantages = np.zeros(rewards.shape)
    for t, i in np.ndindex(rewards.shape):
        for k in range(t, len(rewards)):
            later = 0.0 if ends[k, i] else gamma * values[k + 1, i]
            surprise = rewards[k, i] + later - values[k, i]
            advantages[t, i] += (gamma * gae_lambda) ** (k - t) * surprise
            if ends[k, i]:
                break
    return advantages


def test_gae_refuses_what_does_not_fit():
    misfits = [(5, 5, 1, 1), (6, 6, 1, 1), (6, 5, 1.1, 1), (6, 5, 1, -0.1)]
    for n_values, n_ends, *factors in misfits:
        rows = (np.zeros((n, 2)) for n in (5, n_values, n_ends))
        with pytest.raises(ValueError, match="expected"):
            ppo.gae(*rows, *factors)
    whole = ppo.gae(np.array([[0], [1]]), np.zeros((3, 1), int), [[0], [0]], 1, 0.5)
    assert whole.tolist() == [[0.5], [1]]  # no fraction is cut off


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
def test_rollout_holds_what_was_played_and_no_sample_crosses_an_end(gae_lambda, gamma):
    rng, T, n = np.random.default_rng(16), 23, 6
    over = rng.random((T, n)) < 0.1  # of games; points are ends of rallies
    rewards = rng.choice([-1, 0, 0, 0, 1], (T, n)).astype(np.float32)
    rewards[:, 0] = over[:, 0] = 0  # one game in which nothing ends
    ignored = np.roll(over, 1, axis=0)  # the action after the end of a game
    ids = np.arange(1.0 * T * n).reshape(T, n)
    inputs = [[sparse.csr_matrix(x[:, None]) for x in (i, -i)] for i in ids]
    actions, logs = rng.integers(0, 3, (T, n)), -rng.random((T, n))
    values = rng.standard_normal((T + 1, n)).astype(np.float32)
    past = Experience(inputs, actions, logs, values, rewards, ignored, over)
    for array in past[1:]:
        array.flags.writeable = False
    settings = {"gamma": gamma, "gae_lambda": gae_lambda}
    rollout, explained = ppo.make_rollout(past, settings)
    assert_array_equal(rollout.inputs[0].toarray()[:, 0], ids[~ignored])
    assert_array_equal(rollout.inputs[1].toarray()[:, 0], -ids[~ignored])
    assert_array_equal(rollout.actions, actions[~ignored])
    assert_array_equal(rollout.log_probs, logs[~ignored])
    ends = (rewards != 0) | over
    raw = brute_force_gae(rewards, values, ends, gamma, gae_lambda)[~ignored]
    returns = raw + values[:-1][~ignored]
    assert_allclose(rollout.returns, returns, rtol=1e-4, atol=1e-5)
    standardized = (raw - raw.mean()) / raw.std()
    assert_allclose(rollout.advantages, standardized, rtol=1e-4, atol=1e-5)
    assert rollout.advantages.dtype == rollout.returns.dtype == np.float32
    assert_allclose(explained, 1 - raw.var() / returns.var(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("max_grad_norm", [1e9, 0.01])
def test_adam_agrees_with_the_plain_formula(max_grad_norm):
    rng = np.random.default_rng(6)
    # Three parts, the last one not full; small numbers, where eps counts.
    shapes = {"W1": (700, 200), "b2": (5,)}
    scales = {k: 10 ** rng.uniform(-7, -2, s) for k, s in shapes.items()}
    w, *gradients = ({k: rng.normal(0, x) for k, x in scales.items()} for _ in range(4))
    m, s = dict.fromkeys(shapes, 0), dict.fromkeys(shapes, 0)
    agent = ppo.new_agent({k: np.asfortranarray(x, np.float32) for k, x in w.items()})
    for n, gradient in enumerate(gradients, 1):
        given = {k: g.astype(np.float32) for k, g in gradient.items()}
        for part in (given, *agent[:3]):
            for array in part.values():
                array.flags.writeable = False  # a step leaves them alone
        agent = ppo.adam_step(agent, given, 0.1, max_grad_norm, faster=["b2"])
        assert agent.n_updates == n
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        for k, g in gradient.items():
            g = g * min(1, max_grad_norm / norm)
            m[k] = 0.9 * m[k] + 0.1 * g
            s[k] = 0.999 * s[k] + 0.001 * g**2
            m_hat, s_hat = m[k] / (1 - 0.9**n), s[k] / (1 - 0.999**n)
            rate = 0.2 if k == "b2" else 0.1
            w[k] = w[k] - rate * m_hat / (np.sqrt(s_hat) + 1e-5)
            assert agent.model[k].dtype == np.float32
            assert_allclose(agent.model[k], w[k], rtol=1e-4, atol=1e-7)


def test_minibatches_take_each_row_once_per_epoch():
    ids = np.arange(10) + 1.0
    inputs = tuple(sparse.csr_matrix(s * ids[:, None]) for s in (1, -1))
    rollout = ppo.Rollout(inputs, ids.astype(int), 2 * ids, 3 * ids, 4 * ids)
    settings, rng = dict(epochs=3, n_minibatches=4), np.random.default_rng(18)
    batches = list(ppo.minibatches(rollout, settings, rng))
    assert len(batches) == 12
    for batch in batches:
        seen = [matrix.toarray()[:, 0] for matrix in batch.inputs]
        for factor, column in zip((1, -1, 2, 3, 4), (*seen, *batch[2:])):
            assert_array_equal(column, factor * batch.actions)
    epochs = np.reshape(np.concatenate([b.actions for b in batches]), (3, 10))
    assert_array_equal(np.sort(epochs), [ids] * 3)
    assert len(np.unique(epochs, axis=0)) == 3
