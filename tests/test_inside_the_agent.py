"""The functions of "Inside the agent"."""

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import pong.inside_the_agent as inside
from pong.keep_a_training_safe import load_model
from pong.many_games_at_once import Scene, encode, forward
from pong.set_up import data_file, recorded
from pong.train_to_win import bootstrap_interval

SEEDS = [100_000, 100_001]  # of the evaluation


@pytest.fixture(scope="module")
def model():
    return load_model(data_file("agent.safetensors"))


@pytest.fixture(scope="module")
def whole_game(model):
    """Return the moments of a game, with their frames."""
    envs = inside.make_envs(1)
    moments = list(inside.play_moments(envs, SEEDS[:1], model))
    envs[0].close()
    return moments


def small_network(n):
    """Return weights in float64, and n scenes."""
    rng = np.random.default_rng(4)
    shapes = {"W1": (5123, 7), "W2": (7, 4), "b2": (4,)}
    model = {k: rng.standard_normal(s) for k, s in shapes.items()}
    previous, current = (rng.random((n, 80, 32)) < 0.02 for _ in range(2))
    last_actions = np.eye(3, dtype=bool)[rng.integers(0, 3, n), :2]
    scene = Scene(previous, current, last_actions, np.zeros(n, bool))
    return model, tuple(m.astype(float) for m in encode(scene))


def test_watched_games_are_those_of_the_evaluation(model, whole_game):
    """And the same alone as side by side."""
    games = inside.watch(model, SEEDS)
    evaluated = recorded("evaluation").query("actions == 'greedy'")
    for game, row in zip(games, evaluated.set_index("seed").loc[SEEDS].itertuples()):
        assert game.rewards.sum() == row[2]
        assert len(game.actions) == game.inputs[0].shape[0] == row.decisions
    alone = inside.join(whole_game)
    for name in ("games", "actions", "rewards", "ram"):
        found, expected = getattr(games[0], name), getattr(alone, name)
        np.testing.assert_array_equal(found, expected)
    for seen, expected in zip(games[0].inputs, alone.inputs):
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
        np.testing.assert_allclose(found[i, j], expected, atol=1e-5)
    np.testing.assert_allclose(found[[7, 8]], 0, atol=1e-9)
    assert not found[:, 2].any()


def test_contributions_sort_the_cells_and_add_up_to_the_answer():
    network, inputs = small_network(4)
    mirrored = inside.mirror_rows(inputs[0].toarray())
    np.testing.assert_array_equal(mirrored, inputs[1].toarray())
    answers = forward(inputs, network)[1] - 2 * network["b2"][3]
    gradient = inside.saliency(inputs, network, (0, 0, 0, 1))
    for cells, g, answer in zip(inputs[0].toarray(), gradient, answers):
        total = sum(inside.contributions(cells, g).values())
        np.testing.assert_allclose(total, answer)
    places = {
        "opponent, older": 40 * 32,
        "ball, older": 3 * 32 + 1,
        "own paddle, older": 80 * 32 - 1,
        "opponent, newer": 80 * 32,
        "ball, newer": 80 * 32 + 50 * 32 + 30,
        "last action": 5121,
        "constant": 5122,
    }
    for name, place in places.items():
        parts = inside.contributions(np.arange(5123) == place, gradient[0])
        assert parts.pop(name) == gradient[0, place]
        assert not any(parts.values())


def test_read_ram_of_a_parked_ball_and_of_small_bytes():
    ram = np.zeros((3, 128), np.uint8)
    ram[:, [49, 54, 51, 50]] = [60, 0, 40, 45], [0, 50, 40, 45], [60, 50] * 2
    for name, expected in (
        ("ball x", [np.nan, np.nan, 11]),
        ("ball y", [np.nan, np.nan, 2]),
        ("own paddle y", [-8, -8, 12]),  # no byte wraps around
        ("opponent y", [-4, -4, 1]),
    ):
        np.testing.assert_array_equal(inside.read_ram(ram)[name], expected)


def test_probe_targets(whole_game):
    ram = inside.join(whole_game).ram
    table = inside.probe_targets(ram)
    truth = pd.DataFrame(inside.read_ram(ram))
    before = truth.loc[table.index - 1].set_index(table.index)
    for axis in ("ball x", "ball y"):
        move = table[axis] - before[axis]
        np.testing.assert_array_equal(table[f"{axis} velocity"], move)
    np.testing.assert_array_equal(table[truth.columns], truth.loc[table.index])
    assert table["ball x velocity"].abs().max() <= 8
    assert 0.5 < len(table) / len(ram) < 0.95


def test_probe_is_ridge_regression():
    rng = np.random.default_rng(7)
    features = rng.standard_normal((60, 5)) * [1, 10, 0.1, 3, 1] + 2
    targets = features @ rng.standard_normal((5, 2)) + rng.random((60, 2))
    augmented = np.column_stack([features, np.ones(60)])
    solution = np.linalg.lstsq(augmented, targets, rcond=None)[0]
    found = inside.fit_probe(features, targets, ridge=0.0)(features)
    np.testing.assert_allclose(found, augmented @ solution, rtol=1e-4)
    errors = found - targets
    share = 1 - errors.var(axis=0) / targets.var(axis=0)
    np.testing.assert_allclose(inside.r_squared(found, targets), share)
    assert (inside.r_squared(found + 100, targets) < 0).all()
    # A strong penalty leaves the mean.
    found = inside.fit_probe(features, targets, ridge=1e9)(features)
    np.testing.assert_allclose(found - targets.mean(axis=0), 0, atol=1e-4)


def test_probes_are_scored_on_games_that_they_were_not_fitted_to():
    rng = np.random.default_rng(8)
    features = [rng.standard_normal((40, 30)) for _ in range(3)]
    noise = [rng.standard_normal((40, 1)) for _ in range(3)]
    assert (inside.cross_validate(features, noise) < 0).all()
    linear = [f[:, :2] for f in features]
    assert (inside.cross_validate(features, linear) > 0.99).all()


def test_rally_outcomes():
    rewards = np.array([0.0, 0, 1, 0, -1, -1, 0])
    outcomes = [1, 1, 1, -1, -1, -1, 0]
    np.testing.assert_array_equal(inside.rally_outcomes(rewards), outcomes)
    np.testing.assert_array_equal(inside.rally_outcomes(np.zeros(3)), [0] * 3)


def test_mean_interval_draws_whole_games():
    rng = np.random.default_rng(9)
    means, order = rng.standard_normal(8), rng.permutation(240)
    games, values = np.repeat(np.arange(8) + 5, 30), np.repeat(means, 30)
    # Equally many of each game: the bootstrap of the games' means.
    expected = bootstrap_interval(means, np.random.default_rng(0))
    found = inside.mean_interval(values[order], games[order], np.random.default_rng(0))
    np.testing.assert_allclose(found, expected)


def test_a_frame_shows_game_input_and_now(whole_game):
    moments = whole_game[40:120]
    whole, frames = inside.join(moments), list(inside.make_frames(moments))
    p_up = np.exp(whole.logits.astype(float))
    p_up = p_up[:, 0] / p_up.sum(axis=1)
    for t in (5, 33, 79):
        cells = whole.inputs[0][t].toarray()[0, :5120].reshape(2, 80, 32)
        for picture, left in zip(cells, (352, 504)):
            shown = frames[t][28:188:2, left : left + 128 : 4, 0] > 128
            np.testing.assert_array_equal(shown, picture)
        for trace, top, unit in ((p_up, 224, 79), (whole.values, 342, 79 / 3)):
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


def test_video_has_the_colors_of_the_console():
    env = gym.make("ALE/Pong-v5", obs_type="grayscale", render_mode="rgb_array")
    env.reset(seed=9)
    moments, colors, cells = [], [], sparse.csr_matrix((1, 5123))
    for t in range(90):
        frame, reward, *_ = env.step(2 + t // 9 % 2)
        numbers = np.zeros((1, 3)), np.zeros(1), np.zeros(1, int)
        rest = frame[None], np.zeros((1, 128)), np.array([reward])
        moments.append(inside.Moment([0], (cells, cells), *numbers, *rest))
        colors.append(env.render().astype(int))
    env.close()
    for frame, expected in zip(inside.make_frames(moments), colors):
        assert np.abs(frame[28:448:2, :320:2] - expected).max() <= 1
