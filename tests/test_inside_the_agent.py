"""The functions of "Inside the agent"."""

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import pong.inside_the_agent as inside
from conftest import check_video
from pong.keep_a_training_safe import load_model
from pong.many_games_at_once import Scene, encode, forward
from pong.set_up import data_file
from pong.train_to_win import bootstrap_interval, play_games


@pytest.fixture(scope="module")
def model():
    return load_model(data_file("agent.safetensors"))


@pytest.fixture(scope="module")
def whole_game(model):
    """Return the moments of a game, with their frames."""
    envs = inside.make_envs(1)
    moments = list(inside.play_moments(envs, [11], model))
    envs[0].close()
    return moments


def small_network(n):
    """Return weights in float64, and n scenes, of a seed of its own."""
    rng = np.random.default_rng(n)
    shapes = {"W1": (5123, 7), "W2": (7, 4), "b2": (4,)}
    model = {k: rng.standard_normal(s) for k, s in shapes.items()}
    previous, current = (rng.random((n, 80, 32)) < 0.02 for _ in range(2))
    last_actions = np.eye(3, dtype=bool)[rng.integers(0, 3, n), :2]
    scene = Scene(previous, current, last_actions, np.zeros(n, bool))
    return model, tuple(m.astype(float) for m in encode(scene))


def test_watched_games_are_those_of_the_evaluation(model, whole_game):
    """And the same alone as side by side."""
    seeds, envs = [11, 12], inside.make_envs(2)
    games = inside.watch(model, seeds)
    for game, total, n in zip(games, *play_games(envs, seeds, model)):
        assert game.rewards.sum() == total
        assert len(game.actions) == game.inputs[0].shape[0] == n
    for env in envs:
        env.close()
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


@pytest.mark.parametrize("w", [(1, 0, 0, 0), (0, 0, 1, 0), (1, -1, 0.5, 2)])
def test_saliency_agrees_with_finite_differences(w):
    network, inputs = small_network(3)
    gradient = inside.saliency(inputs, network, w)
    mirrored = inside.mirror_rows(inputs[0].toarray())
    np.testing.assert_array_equal(mirrored, inputs[1].toarray())

    def output(x):
        """Return the weighted sum, written down without the chapter's code."""
        outputs = np.maximum(x @ network["W1"], 0) @ network["W2"]
        other = np.append(x[:5120].reshape(2, 80, 32)[:, ::-1], x[5120:])
        other[[5120, 5121]] = x[[5121, 5120]]
        other = np.maximum(other @ network["W1"], 0) @ network["W2"]
        return np.dot(w, outputs + other[[1, 0, 2, 3]])

    for row, x in enumerate(inputs[0].toarray()):
        cells = [*np.flatnonzero(x), *range(row, 5123, 200)]
        slopes = []
        for cell in cells:
            moved = 1e-6 * (np.arange(5123) == cell)
            slopes.append((output(x + moved) - output(x - moved)) / 2e-6)
        error = np.linalg.norm(slopes - gradient[row, cells])
        assert error < 1e-6 * np.linalg.norm(slopes)


def test_contributions_sort_the_cells_and_add_up_to_the_answer():
    network, inputs = small_network(4)
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


def test_read_ram_agrees_with_the_pixels(whole_game):
    whole = inside.join(whole_game)
    court, memory = whole.frames[1:, 34:194], whole.ram[1:]
    truth = inside.read_ram(memory)
    for name, gray in (("ball", 236), ("opponent", 148), ("own paddle", 147)):
        rows = (court == gray).any(axis=2)
        uncut = rows.any(axis=1) & ~rows[:, 0] & ~rows[:, -1]
        error = truth[f"{name} y"][uncut] - rows.argmax(axis=1)[uncut]
        assert np.abs(error).max() <= 1  # and never NaN
        assert uncut.mean() > 0.4
    ball = (court == 236).any(axis=(1, 2))
    left = (court == 236).any(axis=1).argmax(axis=1)
    np.testing.assert_array_equal(truth["ball x"][ball], left[ball])
    assert np.isnan(truth["ball y"][memory[:, 54] == 0]).all()
    small = np.zeros((1, 128), np.uint8)
    small[0, [49, 54, 51, 50]] = 60, 50, 40, 45  # no byte wraps around
    assert [v[0] for v in inside.read_ram(small).values()] == [11, 2, -8, -4]


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
    found = inside.mean_interval(
        values[order], games[order], np.random.default_rng(0)
    )
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


def test_video_plays_in_a_browser_in_the_console_s_colors(tmp_path):
    env = gym.make(
        "ALE/Pong-v5", obs_type="grayscale", render_mode="rgb_array"
    )
    env.reset(seed=9)
    moments, colors, cells = [], [], sparse.csr_matrix((1, 5123))
    for t in range(90):
        frame, reward, *_ = env.step(2 + t // 9 % 2)
        numbers = np.zeros((1, 3)), np.full(1, t / 90), np.zeros(1, int)
        rest = frame[None], np.zeros((1, 128)), np.array([reward])
        moments.append(inside.Moment([0], (cells, cells), *numbers, *rest))
        colors.append(env.render().astype(int))
    env.close()
    frames, path = list(inside.make_frames(moments)), tmp_path / "thoughts.mp4"
    for frame, expected in zip(frames, colors):
        assert np.abs(frame[28:448:2, :320:2] - expected).max() <= 1
    inside.write_video(str(path), frames)
    assert path.stat().st_size < 1_000_000
    pictures = check_video(path)  # H.264, yuv420p, size
    assert len(pictures) == 90
    shown = np.frombuffer(pictures[60], np.uint8).reshape(448, 640, 3)
    assert np.abs(shown.astype(int) - frames[60]).mean() < 8
