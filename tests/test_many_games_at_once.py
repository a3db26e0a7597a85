"""The functions of "Many games at once"."""

from unittest.mock import Mock

import gymnasium as gym
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal, assert_equal

from pong import many_games_at_once as many


def assert_same_inputs(a, b):
    for matrix, other in zip(a, b, strict=True):
        assert matrix.shape == other.shape and (matrix != other).nnz == 0


def test_next_scene_moves_on_and_forgets_where_a_game_is_over():
    rng = np.random.default_rng(8)
    objects = rng.random((4, 2, 210, 160)) < 0.1
    court = np.array([107, 87, 87, 87]).reshape(4, 1, 1, 1)
    pictures = np.where(objects, 236, court).astype(np.uint8)
    cells = objects[:, :, 34:194:2, 16:144].reshape(4, 2, 80, 32, 4)
    seen = cells.any(axis=4)
    actions = np.array([[0, 1], [1, 0], [1, 2]])
    over = np.array([[0, 0], [1, 0], [0, 0], [0, 0]], bool)
    scenes = [many.first_scene(pictures[0])]
    for step in zip(actions, pictures[1:], over[1:]):
        scenes.append(many.next_scene(scenes[-1], *step))
    # The first game is over after one decision: a new picture, no past.
    previous = [seen[0], seen[0], [seen[2][0], seen[1][1]], seen[2]]
    last = np.zeros((4, 2, 2))
    last[1, 0, 0] = last[1, 1, 1] = last[2, 1, 0] = last[3, 0, 1] = True
    for scene, *expected in zip(scenes, previous, seen, last, over):
        assert_equal(scene, expected)


def scripted(frames, rewards, over):
    """Return a group of games with prepared pictures, rewards and ends."""
    no = np.zeros_like(over)
    return Mock(**{"recv.side_effect": zip(frames[:, :, None], rewards, over, no, no)})


def test_play_records_what_belongs_together():
    rng, T, halves = np.random.default_rng(15), 4, (slice(0, 2), slice(2, 4))
    frames = rng.choice([87, 236], (T + 1, 4, 210, 160), p=[0.98, 0.02])
    frames = frames.astype(np.uint8)
    rewards, game_over = rng.integers(1, 9, (T, 4)), np.zeros((T, 4), bool)
    game_over[1, 0] = game_over[2, 3] = True
    ignored = np.roll(game_over, 1, axis=0)
    models = [many.initialize_model(rng, 7, stay_bias=0) for _ in range(4)]
    script = (frames[1:], rewards, game_over)
    games = [scripted(*(x[:, half] for x in script)) for half in halves]
    scenes = [many.first_scene(frames[0, half]) for half in halves]
    weights = iter(models)
    past, last = many.play(games, scenes, weights, rng, T, every=2)
    assert next(weights, None) is None
    sent = np.hstack([[c.args[0] for c in g.send.call_args_list] for g in games])
    assert sent.dtype == np.int32
    assert_array_equal(sent, np.array([2, 3, 0])[past.actions])
    assert set(sent.flat) == {0, 2, 3}
    assert_array_equal(past.game_over, game_over)
    assert_array_equal(past.ignored, ignored)
    assert_array_equal(past.rewards, np.where(ignored, 0, rewards))
    assert len(past.inputs) == 2 * T
    for k, (half, scene) in enumerate(zip(halves, scenes)):
        # New weights after two decisions; the last ones judge the last scene.
        for t in range(T + 1):
            inputs = many.encode(scene)
            now = models[t // 2 if t < T else -1]
            logits, values, _ = many.forward(inputs, now)
            assert_allclose(past.values[t, half], values, rtol=1e-5)
            if t == T:
                break
            actions = past.actions[t, half]
            assert_same_inputs(past.inputs[2 * t + k], inputs)
            log_probs = many.log_softmax(logits)[range(2), actions]
            assert_allclose(past.log_probs[t, half], log_probs, rtol=1e-5)
            after = frames[t + 1, half], game_over[t, half]
            scene = many.next_scene(scene, actions, *after)
        assert_array_equal(last[k].current, scene.current)


def test_games_are_those_of_the_standard_environment():
    """That more groups play the same games is what "What helped" prints."""
    games = many.make_games(4, n_groups=1)
    env = gym.make("ALE/Pong-v5", obs_type="grayscale")
    assert_array_equal(many.reset(games, seed=6)[0][0], env.reset(seed=6)[0])
    for _ in range(20):  # to stay again is to stay, so nothing can stick
        frames, *_ = games[0].step(np.zeros(4, np.int32))
        assert_array_equal(frames[0, 0], env.step(0)[0])
    assert not many.drift(games[0], [0] * 5).any()
    up_and_down = many.drift(games[0], [2, 3] * 5)
    assert np.ptp(up_and_down, axis=1).max() > 4  # each game sticks elsewhere
    many.reset(calm := many.make_games(4, n_groups=1, sticky=0.0), seed=6)
    assert not np.ptp(many.drift(calm[0], [2, 3] * 5), axis=1).any()  # here, none does
    many.close(games + calm)


def test_after_a_game_the_emulator_ignores_one_action():
    games = many.make_games(1, n_groups=1)
    first = many.reset(games, seed=6)[0]
    score, frames = 0, first
    while score > -20:  # one point before the end
        frames, rewards, *_ = games[0].step(np.zeros(1, np.int32))
        score += rewards[0]
    scenes, rng = [many.first_scene(frames[:, 0])], np.random.default_rng(7)
    model = many.initialize_model(rng)
    past, _ = many.play(games, scenes, iter([model]), rng, 400)
    many.close(games)
    end = int(np.flatnonzero(past.game_over[:, 0])[0])
    assert np.flatnonzero(past.ignored[:, 0]).tolist() == [end + 1]
    assert past.rewards[[end, end + 1], 0].tolist() == [-1, 0]
    assert_same_inputs(past.inputs[end + 2], many.encode(many.first_scene(first)))
