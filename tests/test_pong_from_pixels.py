"""The first chapter's functions: what it sees, its gradient, returns, training."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import pong_from_pixels as recorder  # scripts/pong_from_pixels.py
from pong import pong_from_pixels as chapter
from pong.many_games_at_once import find_objects


class ShortPong:
    """Two rallies, whose rewards do not depend on the actions: even, then lost."""

    def __init__(self):
        self.actions, self.resets, self.frames = [], [], []

    def show(self):
        """Return a frame as the emulator gives it: background, and objects."""
        frame = np.full((210, 160, 3), 144, dtype=np.uint8)
        frame[..., 0] = self.rng.choice([144, 109, 92, 213, 236], (210, 160))
        frame.flags.writeable = False
        self.frames.append(frame)
        return frame

    def reset(self, seed=None):
        self.resets.append(seed)
        self.rewards = (0, 0, -1, 0, 1 if len(self.resets) % 2 else -1)
        self.rng, self.t = np.random.default_rng(len(self.resets)), 0
        return self.show(), {}

    def step(self, action):
        self.actions.append(action)
        reward = self.rewards[self.t]
        self.t += 1
        over = self.t == len(self.rewards)
        return self.show(), reward, False, over, {}


def test_weights_are_1280200_of_the_right_size():
    model = chapter.initialize_policy(6400, 200, np.random.default_rng(0))
    assert sum(w.size for w in model.values()) == 1_280_200
    assert abs(model["W1"].std() * np.sqrt(6400) - 1) < 0.01
    assert abs(model["W2"].std() * np.sqrt(200) - 1) < 0.2


def test_sigmoid_of_huge_numbers():
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        found = chapter.sigmoid(np.array([-1e4, -800.0, 0.0, 800.0, 1e4]))
    assert_allclose(found, [0, 0, 0.5, 1, 1], atol=1e-300)


@pytest.mark.parametrize("seed", range(8))
def test_gradient_agrees_with_finite_differences(seed):
    rng = np.random.default_rng(seed)
    n_steps, n_inputs, n_hidden = rng.integers(1, 12, size=3)
    model = chapter.initialize_policy(n_inputs, n_hidden, rng)
    if seed % 2:  # one hidden unit that no input wakes up: a dead ReLU
        model["W1"][0] = -1.0
    inputs = np.abs(rng.standard_normal((n_steps, n_inputs)))
    moved_up = rng.random(n_steps) < 0.5
    advantages = rng.standard_normal(n_steps)
    p_up, hiddens = chapter.policy_forward(inputs, model)
    pushes = advantages * (moved_up - p_up)
    analytic = chapter.policy_backward(inputs, hiddens, pushes, model)

    def objective(m):
        return chapter.policy_objective(m, inputs, moved_up, advantages)

    for name, weights in model.items():
        found, places = analytic[name].ravel(), range(weights.size)
        expected = chapter.central_differences(objective, model, name, places)
        assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_rmsprop_against_a_step_by_hand():
    model = {"W1": np.array([[1.0, -2.0]]), "W2": np.array([3.0])}
    gradient = {"W1": np.array([[1.0, -4.0]]), "W2": np.array([0.0])}
    cache = {"W1": np.array([[1.0, 0.0]]), "W2": np.array([0.0])}
    for array in (*model.values(), *cache.values()):
        array.flags.writeable = False  # a step leaves them alone
    after, new_cache = chapter.rmsprop_step(model, gradient, cache, 0.1, 0.75)
    # Cache: 0.75·1 + 0.25·1² = 1 and 0.75·0 + 0.25·4² = 4; roots 1 and 2.
    assert_allclose(new_cache["W1"], [[1.0, 4.0]])
    assert_allclose(after["W1"], [[1.1, -2.2]], atol=1e-5)
    assert_array_equal(after["W2"], [3.0])


@pytest.mark.parametrize("seed", range(20))
def test_discounting_against_its_definition(seed):
    rng = np.random.default_rng(seed)
    rewards = rng.choice([-1, 0, 1], p=[0.05, 0.9, 0.05], size=rng.integers(1, 120))
    gamma = rng.choice([0.0, 0.5, 0.9, 0.99, 1.0])
    n, ends = len(rewards), np.append(np.flatnonzero(rewards), len(rewards) - 1)
    end = ends[np.searchsorted(ends, range(n))]  # of the rally
    expected = gamma ** (end - range(n)) * rewards[end]
    rewards.flags.writeable = False
    for given in (rewards, rewards.astype(float), rewards.tolist()):
        returns = chapter.discount_rewards(given, gamma)
        assert returns.dtype == np.float64
        assert_allclose(returns, expected, rtol=1e-12)


def test_standardizing_where_all_is_the_same():
    with np.errstate(all="raise"):
        for equal in ([-1, -1, -1], [0.1] * 7, [5]):
            assert not chapter.standardize(equal).any()


def test_an_episode_holds_what_happened():
    env = ShortPong()
    model = chapter.initialize_policy(6400, 5, np.random.default_rng(0))
    episode = chapter.play_episode(env, model, np.random.default_rng(1), seed=9)
    assert env.resets == [9]
    assert_array_equal(episode.rewards, env.rewards)
    # What was there before each decision: every second pixel of the court.
    courts = np.array(env.frames[:-1])[:, 35:195:2, ::2, 0]
    courts = (~np.isin(courts, (109, 144))).astype(float)
    changes = np.diff(courts, axis=0, prepend=courts[:1])
    assert_array_equal(episode.inputs, changes.reshape(5, 6400))
    p_up, hiddens = chapter.policy_forward(episode.inputs, model)
    assert_allclose(episode.hiddens, hiddens)
    assert set(env.actions) == {2, 3}
    assert_allclose(episode.output_gradients, (np.array(env.actions) == 2) - p_up)


def test_actions_follow_their_probability():
    rng = np.random.default_rng(2)
    actions = [chapter.choose_action(0.3, rng)[0] for _ in range(4000)]
    assert abs(np.mean(np.array(actions) == 2) - 0.3) < 0.03
    assert chapter.choose_action(1.0, rng) == (2, 0.0)
    assert chapter.choose_action(0.0, rng) == (3, 0.0)


@pytest.mark.parametrize("max_episodes", [2, 7])
def test_training_steps_once_per_batch(max_episodes):
    model = chapter.initialize_policy(6400, 5, np.random.default_rng(0))
    for weights in model.values():
        weights.flags.writeable = False  # training leaves them alone
    settings, env = (max_episodes, 3, 1e-3, 0.9, 0.99), ShortPong()
    rng = np.random.default_rng(1)
    trained, history = chapter.train_reinforce(env, model, rng, 0, *settings)
    assert env.resets == [0] + [None] * (max_episodes - 1)
    # The same, written out: each step along the sum of three gradients.
    env, rng, expected = ShortPong(), np.random.default_rng(1), model
    cache = {name: np.zeros_like(w) for name, w in model.items()}
    for _ in range(max_episodes // 3):
        total = {name: 0.0 for name in model}
        for _ in range(3):
            episode = chapter.play_episode(env, expected, rng)
            returns = chapter.discount_rewards(episode.rewards, 0.99)
            advantages = (returns - returns.mean()) / returns.std()
            pushes = advantages * episode.output_gradients
            gradient = chapter.policy_backward(*episode[:2], pushes, expected)
            total = {name: total[name] + gradient[name] for name in model}
        expected, cache = chapter.rmsprop_step(expected, total, cache, 1e-3, 0.9)
    for name in model:
        assert_allclose(trained[name], expected[name], rtol=1e-12)
        assert (trained[name] != model[name]).any() == (max_episodes >= 3)
    returns = [0, -2, 0, -2, 0, -2, 0][:max_episodes]
    means = itertools.accumulate(returns, lambda m, r: 0.99 * m + 0.01 * r)
    assert_array_equal(history["returns"], returns)
    assert_allclose(history["running_mean"], list(means))
    assert_array_equal(history["decisions"], [5] * max_episodes)


def test_what_the_chapter_says_about_the_actions():
    """The button moves no paddle, and makes a ball that is hit then faster."""
    options = {"frameskip": 1, "repeat_action_probability": 0.0}
    env, rng = chapter.gym.make("ALE/Pong-v5", **options), np.random.default_rng(0)
    env.reset(seed=3)
    pressed, ball = [], []
    for frame in range(10_000):
        if frame % 200 == 0:
            press = int(rng.integers(2))
        x, y, row = env.unwrapped.ale.getRAM()[[49, 54, 51]].tolist()
        move = 0 if rng.random() < 0.1 else 2 if y < row + 8 else 3
        done = env.step({0: (0, 1), 2: (2, 4), 3: (3, 5)}[move][press])[2]
        if done:
            env.reset()
        pressed.append(press)
        ball.append(x)
    speed = np.diff(np.array(ball, int))
    faster = {0: [], 1: [], "opponent": []}
    for t in np.flatnonzero(speed[:-1] * speed[1:] < 0) + 1:
        before, after = (np.median(np.abs(speed[i : i + 7])) for i in (t - 8, t + 3))
        if 1 <= before < 4:  # columns per frame; nothing is faster than 4
            faster[pressed[t] if speed[t] < 0 else "opponent"].append(after - before)
    assert len(faster[0]) > 8 and set(faster[0]) == {0}
    assert len(faster["opponent"]) > 8 and set(faster["opponent"]) == {0}
    assert len(faster[1]) > 8 and np.mean(np.equal(faster[1], 1)) > 0.9

    def frames(actions):
        env.reset(seed=3)
        return [env.step(int(action))[0] for action in actions]

    choice = rng.integers(0, 2, 60)  # no ball comes so early
    for plain, fire in ((0, 1), (2, 4), (3, 5)):
        mixed = np.where(choice, plain, fire)
        assert np.array_equal(frames([plain] * 60), frames(mixed))
    env.close()


SMALL, FLOATS = np.zeros((80, 80), np.uint8), np.zeros((210, 160, 3))
GRAY = np.zeros((2, 210, 160), np.uint8)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        (chapter.frame_preprocessing, [SMALL], "frame.*210.*80, 80"),
        (chapter.frame_preprocessing, [FLOATS], "frame.*uint8.*float64"),
        (chapter.discount_rewards, [[0, 1], 1.1], "gamma.*0 to 1.*1.1"),
        (chapter.discount_rewards, [[0, 1], np.nan], "gamma.*0 to 1.*nan"),
        (chapter.choose_action, [np.nan, RNG], "p_up.*nan"),
        (chapter.choose_action, [1.5, RNG], "p_up.*1.5"),
        (find_objects, [GRAY[0]], "frames"),
        (find_objects, [GRAY + 0.0], "frames"),
    ],
)
def test_bad_input_that_would_go_unnoticed(function, arguments, words):
    with pytest.raises(ValueError, match=words):
        function(*arguments)


def test_the_recorder_plays_what_the_chapter_plays():
    model = chapter.initialize_policy(6400, 20, np.random.default_rng(3))
    plain, fast = (
        play(ShortPong(), model, np.random.default_rng(1), 0)
        for play in (chapter.play_episode, recorder.play_without_zeros)
    )
    assert_array_equal(fast.inputs.toarray(), plain.inputs)
    found, expected = (chapter.episode_gradient(e, model, 0.99) for e in (fast, plain))
    for name in model:
        assert_allclose(found[name], expected[name], atol=1e-12)
