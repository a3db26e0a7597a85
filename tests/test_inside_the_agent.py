"""The functions of "Inside the agent"."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.special import softmax

import pong.inside_the_agent as inside
from pong.keep_a_training_safe import load_model
from pong.set_up import data_file, recorded
from pong.train_to_win import bootstrap_interval

SEEDS = [100_000, 100_001]  # of the evaluation


@pytest.fixture(scope="module")
def model():
    return load_model(data_file("agent.safetensors"))


@pytest.fixture(scope="module")
def watched(model):
    """Return the moments of a game, and what the console shows at those."""
    envs = inside.make_envs(1, render_mode="rgb_array")
    moments, screens = [], [None]  # a moment comes after its decision
    for moment in inside.play_moments(envs, SEEDS[:1], model):
        moments.append(moment)
        screens.append(envs[0].render())
    envs[0].close()
    return moments, screens


@pytest.fixture(scope="module")
def whole(watched):
    return inside.join(watched[0])


def test_watched_games_are_those_of_the_evaluation(model, whole):
    games = inside.watch(model, SEEDS)
    evaluated = recorded("evaluation").query("actions == 'greedy'")
    for game, row in zip(games, evaluated.set_index("seed").loc[SEEDS].itertuples()):
        assert game.rewards.sum() == row[2]
        assert len(game.actions) == game.inputs[0].shape[0] == row.decisions
    for name in ("games", "actions", "rewards", "ram"):
        assert_array_equal(getattr(games[0], name), getattr(whole, name))
    for seen, expected in zip(games[0].inputs, whole.inputs):
        assert (seen != expected).nnz == 0


def test_responses_are_correlations():
    rng = np.random.default_rng(1)
    cells = (rng.random((50, 5123)) < 0.2).astype(np.float32)
    cells[:, 7], cells[:, 8] = 0, 1  # cells that never change
    hidden = np.maximum(rng.standard_normal((50, 3)), 0)
    hidden[:, 2] = 0
    found = inside.responses(sparse.csr_matrix(cells), hidden)
    for i, j in [(0, 0), (100, 1), (5122, 0)]:
        expected = np.corrcoef(cells[:, i], hidden[:, j])[0, 1]
        assert_allclose(found[i, j], expected, atol=1e-5)
    assert_allclose(found[[7, 8]], 0, atol=1e-9)
    assert not found[:, 2].any()


def test_read_ram_of_a_parked_ball_and_of_small_bytes():
    ram = np.zeros((3, 128), np.uint8)
    ram[:, [49, 54, 51, 50]] = [60, 0, 40, 45], [0, 50, 40, 45], [60, 50] * 2
    for name, expected in (
        ("ball x", [np.nan, np.nan, 11]),
        ("ball y", [np.nan, np.nan, 2]),
        ("own paddle y", [-8, -8, 12]),  # no byte wraps around
        ("opponent y", [-4, -4, 1]),
    ):
        assert_array_equal(inside.read_ram(ram)[name], expected)


def test_probe_targets(whole):
    table = inside.probe_targets(whole.ram)
    truth = pd.DataFrame(inside.read_ram(whole.ram))
    before = truth.loc[table.index - 1].set_index(table.index)
    for axis in ("ball x", "ball y"):
        assert_array_equal(table[f"{axis} velocity"], table[axis] - before[axis])
    assert_array_equal(table[truth.columns], truth.loc[table.index])
    assert table["ball x velocity"].abs().max() <= 8
    assert 0.5 < len(table) / len(truth) < 0.95


def test_probe_is_ridge_regression():
    rng = np.random.default_rng(7)
    features = rng.standard_normal((60, 5)) * [1, 10, 0.1, 3, 1] + 2
    targets = features @ rng.standard_normal((5, 2)) + rng.random((60, 2))
    augmented = np.column_stack([features, np.ones(60)])
    solution = np.linalg.lstsq(augmented, targets, rcond=None)[0]
    found = inside.fit_probe(features, targets, ridge=0.0)(features)
    assert_allclose(found, augmented @ solution, rtol=1e-4)
    share = 1 - (found - targets).var(axis=0) / targets.var(axis=0)
    assert_allclose(inside.r_squared(found, targets), share)
    assert (inside.r_squared(found + 100, targets) < 0).all()
    # A strong penalty leaves the mean.
    found = inside.fit_probe(features, targets, ridge=1e9)(features)
    assert_allclose(found - targets.mean(axis=0), 0, atol=1e-4)


def test_probes_are_scored_on_games_that_they_were_not_fitted_to():
    rng = np.random.default_rng(8)
    features = [rng.standard_normal((40, 30)) for _ in range(3)]
    noise = [rng.standard_normal((40, 1)) for _ in range(3)]
    assert (inside.cross_validate(features, noise) < 0).all()
    linear = [f[:, :2] for f in features]
    assert (inside.cross_validate(features, linear) > 0.99).all()


def test_rally_outcomes():
    rewards = np.array([0.0, 0, 1, 0, -1, -1, 0])
    assert_array_equal(inside.rally_outcomes(rewards), [1, 1, 1, -1, -1, -1, 0])
    assert_array_equal(inside.rally_outcomes(np.zeros(3)), [0] * 3)


def test_mean_interval_draws_whole_games():
    rng = np.random.default_rng(9)
    means, order = rng.standard_normal(8), rng.permutation(240)
    games, values = np.repeat(np.arange(8) + 5, 30), np.repeat(means, 30)
    # Equally many of each game: the bootstrap of the games' means.
    expected = bootstrap_interval(means, np.random.default_rng(0))
    found = inside.mean_interval(values[order], games[order], np.random.default_rng(0))
    assert_allclose(found, expected)


def test_a_frame_shows_game_input_and_now(watched):
    moments, screens = (rows[:120] for rows in watched)
    some, frames = inside.join(moments), list(inside.make_frames(moments))
    for frame, screen in zip(frames[1:], screens[1:]):  # in the console's colors
        assert np.abs(frame[28:448:2, :320:2] - screen.astype(int)).max() <= 1
    p_up = softmax(some.logits.astype(float), axis=1)[:, 0]
    for t in (45, 73, 119):
        cells = some.inputs[0][t].toarray()[0, :5120].reshape(2, 80, 32)
        for picture, left in zip(cells, (352, 504)):
            shown = frames[t][28:188:2, left : left + 128 : 4, 0] > 128
            assert_array_equal(shown, picture)
        for trace, top, unit in ((p_up, 224, 79), (some.values, 342, 79 / 3)):
            strip = frames[t][top : top + 80, 368:624]
            assert not strip[:, 127:129].any()  # now
            assert strip[:, 129:].min() >= 170  # to come
            # Filled from zero up to what it is half a decision before now.
            filled = (strip[:, 126] < 255).any(axis=1)
            size = unit * trace[t - 1 : t + 1].mean()
            assert abs(filled.sum() - abs(size)) <= 1
            zero = 79 if unit == 79 else 39.5
            middle = np.flatnonzero(filled).mean() if filled.any() else zero
            assert abs(zero - size / 2 - middle) <= 1
