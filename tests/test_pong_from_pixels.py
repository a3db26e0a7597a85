"""The functions of the first chapter, as the notebook defines them."""

import numpy as np
import pytest
from conftest import check_video


def random_frame(rng):
    """Return a frame as the emulator gives it: background, and a few objects."""
    frame = np.full((210, 160, 3), 144, dtype=np.uint8)
    frame[..., 0] = rng.choice([144, 109, 92, 213, 236], size=(210, 160))
    return frame


def numerical_gradient(objective, model, step=1e-6):
    """Return central differences by every weight, shaped like the model."""
    gradient = {name: np.zeros_like(w) for name, w in model.items()}
    for name, weights in model.items():
        for index in np.ndindex(weights.shape):
            above, below = (
                {k: w.copy() for k, w in model.items()} for _ in "ab"
            )
            above[name][index] += step
            below[name][index] -= step
            gradient[name][index] = (objective(above) - objective(below)) / (
                2 * step
            )
    return gradient


def relative_error(a, b):
    """Return the distance of two arrays, relative to their lengths."""
    return np.linalg.norm(a - b) / (np.linalg.norm(a) + np.linalg.norm(b))


def brute_force_returns(rewards, gamma):
    """Return the definition of the discounted return, term by term."""
    returns = []
    for t in range(len(rewards)):
        total, k = 0.0, t
        while k < len(rewards):
            total += gamma ** (k - t) * rewards[k]
            if rewards[k] != 0:
                break
            k += 1
        returns.append(total)
    return np.array(returns)


# Frames and inputs


def test_preprocessing_leaves_the_frame_untouched(chapter):
    frame = random_frame(np.random.default_rng(0))
    before = frame.copy()
    picture = chapter.frame_preprocessing(frame)
    np.testing.assert_array_equal(frame, before)
    assert not np.shares_memory(picture, frame)
    picture[:] = 7
    np.testing.assert_array_equal(frame, before)


def test_preprocessing_marks_all_but_background(chapter):
    frame = random_frame(np.random.default_rng(1))
    picture = chapter.frame_preprocessing(frame)
    assert picture.shape == (80, 80)
    assert picture.dtype == np.float64
    for row in range(80):
        for column in range(80):
            value = frame[35 + 2 * row, 2 * column, 0]
            assert picture[row, column] == (value not in (109, 144))


def test_preprocessing_keeps_paddles_and_ball_of_a_game(chapter):
    env = chapter.make_pong()
    frame, _ = env.reset(seed=3)
    for _ in range(60):
        picture = chapter.frame_preprocessing(frame)
        assert set(np.unique(picture)) == {0.0, 1.0}
        # The agent's paddle: 2 columns of 8 pixels, cut off at the edge at most.
        assert 1 <= picture[:, 70].sum() <= 9
        assert picture.sum() < 100
        frame, *_ = env.step(2)
    env.close()


def test_input_is_the_difference(chapter):
    rng = np.random.default_rng(2)
    previous, current = (rng.integers(0, 2, (80, 80)) for _ in range(2))
    np.testing.assert_array_equal(
        chapter.update_input(current, previous),
        (current.astype(float) - previous).reshape(6400),
    )
    first = chapter.update_input(current)
    np.testing.assert_array_equal(first, np.zeros(6400))


# Network and gradients


def test_parameters_number_1280200(chapter):
    model = chapter.initialize_model(6400, 200, np.random.default_rng(0))
    assert sum(w.size for w in model.values()) == 1_280_200
    assert abs(model["W1"].std() * np.sqrt(6400) - 1) < 0.01
    assert abs(model["W2"].std() * np.sqrt(200) - 1) < 0.2


def test_sigmoid_of_small_and_huge_numbers(chapter):
    z = np.linspace(-30, 30, 121)
    np.testing.assert_allclose(chapter.sigmoid(z), 1 / (1 + np.exp(-z)))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        extremes = chapter.sigmoid(np.array([-1e4, -800.0, 0.0, 800.0, 1e4]))
    np.testing.assert_allclose(extremes, [0, 0, 0.5, 1, 1], atol=1e-300)


def test_forward_pass_of_a_frame_and_of_a_batch_agree(chapter):
    rng = np.random.default_rng(4)
    model = chapter.initialize_model(50, 7, rng)
    batch = rng.standard_normal((9, 50))
    p_batch, hidden_batch = chapter.policy_forward(batch, model)
    assert p_batch.shape == (9,)
    assert hidden_batch.shape == (9, 7)
    for x, p, hidden in zip(batch, p_batch, hidden_batch):
        p_one, hidden_one = chapter.policy_forward(x, model)
        assert np.ndim(p_one) == 0
        np.testing.assert_allclose(p_one, p, rtol=1e-12)
        np.testing.assert_allclose(hidden_one, hidden, rtol=1e-12, atol=1e-12)
        by_hand = [max(0.0, sum(w * x)) for w in model["W1"]]
        np.testing.assert_allclose(hidden_one, by_hand, rtol=1e-9, atol=1e-12)
        logit = sum(model["W2"] * by_hand)
        np.testing.assert_allclose(p_one, 1 / (1 + np.exp(-logit)), rtol=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_gradient_agrees_with_finite_differences(chapter, seed):
    rng = np.random.default_rng(seed)
    n_steps, n_inputs, n_hidden = rng.integers(1, 12, size=3)
    model = chapter.initialize_model(n_inputs, n_hidden, rng)
    if seed % 2:  # one hidden unit that no input wakes up: a dead ReLU
        model["W1"][0] = -1.0
    inputs = np.abs(rng.standard_normal((n_steps, n_inputs)))
    moved_up = rng.random(n_steps) < 0.5
    advantages = rng.standard_normal(n_steps)

    p_up, hiddens = chapter.policy_forward(inputs, model)
    if seed % 2:
        assert not hiddens[:, 0].any()
    analytic = chapter.policy_backward(
        inputs, hiddens, advantages * (moved_up - p_up), model
    )

    def objective(m):
        # Independent of the chapter's functions.
        logits = np.maximum(inputs @ m["W1"].T, 0) @ m["W2"]
        signs = np.where(moved_up, 1.0, -1.0)
        return np.sum(advantages * -np.log1p(np.exp(-signs * logits)))

    assert np.isclose(
        objective(model),
        chapter.policy_objective(model, inputs, moved_up, advantages),
    )
    numerical = numerical_gradient(objective, model)
    for name, expected in numerical.items():
        if np.linalg.norm(expected) < 1e-12:  # all units dead: exactly zero
            assert not analytic[name].any()
        else:
            assert relative_error(analytic[name], expected) < 1e-6


def test_gradient_check_of_the_chapter_finds_a_wrong_gradient(chapter):
    rng = np.random.default_rng(0)
    model = chapter.initialize_model(6, 3, rng)
    exact = chapter.central_differences(
        lambda m: np.sum(m["W1"] ** 2), model, "W1", range(18)
    )
    np.testing.assert_allclose(exact, 2 * model["W1"].ravel(), rtol=1e-8)
    assert relative_error(exact, -exact) > 0.9


def test_a_better_action_becomes_more_probable(chapter):
    rng = np.random.default_rng(5)
    model = chapter.initialize_model(20, 8, rng)
    x = rng.standard_normal(20)
    p_before, hidden = chapter.policy_forward(x, model)
    for moved_up in (True, False):
        gradient = chapter.policy_backward(
            x[None], hidden[None], np.array([moved_up - p_before]), model
        )
        cache = {name: np.zeros_like(w) for name, w in model.items()}
        better, _ = chapter.rmsprop_step(model, gradient, cache, 1e-3, 0.99)
        p_after, _ = chapter.policy_forward(x, better)
        assert (p_after > p_before) == moved_up


def test_rmsprop_against_a_step_by_hand(chapter):
    model = {"W1": np.array([[1.0, -2.0]]), "W2": np.array([3.0])}
    gradient = {"W1": np.array([[1.0, -4.0]]), "W2": np.array([0.0])}
    cache = {"W1": np.array([[1.0, 0.0]]), "W2": np.array([0.0])}
    new_model, new_cache = chapter.rmsprop_step(
        model, gradient, cache, learning_rate=0.1, decay=0.75, epsilon=0.25
    )
    # Cache: 0.75·1 + 0.25·1² = 1 and 0.75·0 + 0.25·4² = 4.
    np.testing.assert_allclose(new_cache["W1"], [[1.0, 4.0]])
    # Steps: 0.1·1 / (√1 + 0.25) = 0.08 and 0.1·(−4) / (√4 + 0.25) = −8/45.
    expected = [[1.08, -2.0 - 8 / 45]]
    np.testing.assert_allclose(new_model["W1"], expected, rtol=1e-14)
    np.testing.assert_array_equal(new_model["W2"], [3.0])
    # The inputs are left as they are.
    np.testing.assert_array_equal(model["W1"], [[1.0, -2.0]])
    np.testing.assert_array_equal(cache["W1"], [[1.0, 0.0]])


# Rewards


@pytest.mark.parametrize("seed", range(20))
def test_discounting_against_brute_force(chapter, seed):
    rng = np.random.default_rng(seed)
    n_steps = rng.integers(1, 120)
    rewards = rng.choice([-1, 0, 1], p=[0.05, 0.9, 0.05], size=n_steps)
    gamma = rng.choice([0.0, 0.5, 0.9, 0.99, 1.0])
    expected = brute_force_returns(rewards, gamma)
    for given in (rewards, rewards.astype(float), rewards.tolist()):
        returns = chapter.discount_rewards(given, gamma)
        assert returns.dtype == np.float64
        np.testing.assert_allclose(returns, expected, rtol=1e-12)


def test_discounting_leaves_its_input_alone(chapter):
    rewards = np.array([0.0, 0.0, 1.0])
    chapter.discount_rewards(rewards, 0.5)
    np.testing.assert_array_equal(rewards, [0, 0, 1])


def test_standardizing(chapter):
    returns = np.random.default_rng(6).standard_normal(100) * 3 + 5
    advantages = chapter.standardize(returns)
    assert abs(advantages.mean()) < 1e-12
    assert abs(advantages.std() - 1) < 1e-12
    with np.errstate(all="raise"):
        for equal in ([-1, -1, -1], [0.1] * 7, [5]):
            assert not chapter.standardize(equal).any()


# Playing and training


class ShortPong:
    """An environment of two rallies whose rewards do not depend on the actions."""

    rewards = (0, 0, -1, 0, 1)

    def __init__(self):
        self.actions = []
        self.resets = []

    def reset(self, seed=None):
        self.resets.append(seed)
        self.rng = np.random.default_rng(len(self.resets))
        self.t = 0
        return random_frame(self.rng), {}

    def step(self, action):
        self.actions.append(action)
        reward = self.rewards[self.t]
        self.t += 1
        over = self.t == len(self.rewards)
        return random_frame(self.rng), reward, False, over, {}


def test_an_episode_holds_what_happened(chapter):
    env, model = (
        ShortPong(),
        chapter.initialize_model(6400, 5, np.random.default_rng(0)),
    )
    episode = chapter.play_episode(
        env, model, np.random.default_rng(1), seed=9
    )
    assert env.resets == [9]
    np.testing.assert_array_equal(episode.rewards, ShortPong.rewards)
    assert not episode.inputs[0].any()
    assert episode.inputs[1].any()
    p_up, hiddens = chapter.policy_forward(episode.inputs, model)
    np.testing.assert_allclose(episode.hiddens, hiddens)
    moved_up = np.array(env.actions) == 2
    assert set(env.actions) == {2, 3}
    np.testing.assert_allclose(episode.output_gradients, moved_up - p_up)


def test_actions_follow_their_probability(chapter):
    rng = np.random.default_rng(2)
    actions = [chapter.choose_action(0.3, rng)[0] for _ in range(4000)]
    assert abs(np.mean(np.array(actions) == 2) - 0.3) < 0.03
    assert chapter.choose_action(1.0, rng) == (2, 0.0)
    assert chapter.choose_action(0.0, rng) == (3, 0.0)


def test_gradient_of_an_episode_weighs_choices_by_what_followed(chapter):
    rng = np.random.default_rng(3)
    model = chapter.initialize_model(12, 4, rng)
    inputs = rng.standard_normal((6, 12))
    _, hiddens = chapter.policy_forward(inputs, model)
    rewards = np.array([0, 0, -1, 0, 0, 1.0])
    pushes = rng.standard_normal(6)  # the y − p of each decision
    episode = chapter.Episode(inputs, hiddens, pushes, rewards)
    returns = brute_force_returns(rewards, 0.8)
    advantages = (returns - returns.mean()) / returns.std()
    expected = chapter.policy_backward(
        inputs, hiddens, pushes * advantages, model
    )
    gradient = chapter.episode_gradient(episode, model, gamma=0.8)
    for name in model:
        np.testing.assert_allclose(gradient[name], expected[name], rtol=1e-12)


def test_training_steps_once_per_batch(chapter):
    model = chapter.initialize_model(6400, 5, np.random.default_rng(0))
    before = {name: weights.copy() for name, weights in model.items()}

    def train(max_episodes):
        return chapter.train(
            ShortPong(), model, np.random.default_rng(1), 0,
            max_episodes=max_episodes, batch_size=3,
            learning_rate=1e-3, decay=0.9, gamma=0.99,
        )  # fmt: skip

    # The same, written out: sums of three gradients, each one step.
    env, rng = ShortPong(), np.random.default_rng(1)
    cache = {name: np.zeros_like(w) for name, w in model.items()}
    expected = [model]
    for _ in range(2):
        total = {name: 0.0 for name in model}
        for _ in range(3):
            episode = chapter.play_episode(env, expected[-1], rng)
            gradient = chapter.episode_gradient(episode, expected[-1], 0.99)
            total = {name: total[name] + gradient[name] for name in model}
        after, cache = chapter.rmsprop_step(
            expected[-1], total, cache, 1e-3, 0.9
        )
        expected.append(after)

    for max_episodes, steps in ((2, 0), (3, 1), (5, 1), (6, 2)):
        trained, history = train(max_episodes)
        for name in model:
            np.testing.assert_allclose(
                trained[name], expected[steps][name], rtol=1e-12
            )
            if steps:
                assert np.any(trained[name] != expected[steps - 1][name])
            np.testing.assert_array_equal(model[name], before[name])
        np.testing.assert_array_equal(history["returns"], [0] * max_episodes)
        np.testing.assert_array_equal(history["decisions"], [5] * max_episodes)


def test_running_mean(chapter):
    model = chapter.initialize_model(6400, 5, np.random.default_rng(0))
    env = ShortPong()
    scores = iter([(-1.0,), (1.0,), (-1.0,)])
    reset = env.reset

    def reset_with_new_rewards(seed=None):
        env.rewards = next(scores)
        return reset(seed)

    env.reset = reset_with_new_rewards
    _, history = chapter.train(
        env, model, np.random.default_rng(1), 0, max_episodes=3, batch_size=3,
        learning_rate=1e-3, decay=0.9, gamma=0.99,
    )  # fmt: skip
    np.testing.assert_allclose(history["returns"], [-1, 1, -1])
    np.testing.assert_allclose(history["running_mean"], [-1, -0.98, -0.9802])


def test_seeded_games_repeat(chapter):
    model = chapter.initialize_model(
        6400, 200, np.random.default_rng(12288743)
    )

    def play(seed):
        env = chapter.make_pong()
        episode = chapter.play_episode(
            env, model, np.random.default_rng(12288743), seed=seed
        )
        env.close()
        return episode

    first, second, other = play(5), play(5), play(6)
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(
        first.rewards, other.rewards
    ) or not np.array_equal(first.inputs, other.inputs)


def test_what_the_chapter_says_about_the_actions(chapter):
    """FIRE does nothing, the FIRE variants equal the plain moves, 2 is up."""
    env = chapter.gym.make("ALE/Pong-v5", repeat_action_probability=0.0)
    choice = np.random.default_rng(0).integers(0, 2, 200)

    def play(actions):
        env.reset(seed=3)
        return [env.step(int(action))[0] for action in actions]

    for plain, fire in ((0, 1), (2, 4), (3, 5)):
        mixed = np.where(choice, plain, fire)
        assert np.array_equal(play([plain] * 200), play(mixed))

    def paddle_row(action):
        court = chapter.frame_preprocessing(play([action] * 15)[-1])
        return np.flatnonzero(court[:, 70]).mean()

    assert paddle_row(2) < paddle_row(0) < paddle_row(3)
    env.close()


def test_recording_needs_no_screen(chapter, tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    folder = tmp_path / "video"
    env = chapter.make_pong(video_folder=str(folder), name_prefix="game")
    env.reset(seed=0)
    shown = [env.render()]
    for _ in range(40):
        env.step(2)
        shown.append(env.render())
    env.close()

    (path,) = folder.iterdir()
    assert path.name == "game-episode-0.mp4"
    pictures = check_video(path)
    assert len(pictures) == len(shown)
    for picture, original in zip(pictures, shown):
        decoded = np.frombuffer(picture, np.uint8).reshape(210, 160, 3)
        assert np.abs(decoded.astype(float) - original).mean() < 10


# Bad input


MODEL = {"W1": np.ones((2, 3)), "W2": np.ones(2)}
CACHE = {"W1": np.zeros((2, 3)), "W2": np.zeros(2)}
NAN = np.array([0.0, np.nan, 1.0])


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        ("frame_preprocessing", [np.zeros((80, 80), np.uint8)], "frame.*210 × 160 × 3.*80 × 80"),
        ("frame_preprocessing", [np.zeros((210, 160, 3))], "frame.*uint8.*float64"),
        ("update_input", [np.zeros((80, 81))], "current.*80 × 80.*80 × 81"),
        ("update_input", [np.zeros((80, 80)), np.zeros(6400)], "previous.*80 × 80.*6400"),
        ("update_input", [np.full((80, 80), np.nan)], "current.*finite"),
        ("policy_forward", [np.zeros(4), MODEL], "x.*shape 3.*got 4"),
        ("policy_forward", [np.zeros((5, 4)), MODEL], "x.*any × 3.*5 × 4"),
        ("policy_forward", [np.zeros((0, 3)), MODEL], "x.*any × 3.*0 × 3"),
        ("policy_forward", [NAN, MODEL], "x.*finite"),
        ("policy_forward", [["a", "b", "c"], MODEL], "x.*numbers"),
        ("policy_backward", [np.zeros((0, 3)), np.zeros((0, 2)), [], MODEL], "inputs.*any × 3"),
        ("policy_backward", [np.ones((2, 3)), np.ones((1, 2)), [1, 1], MODEL], "hiddens.*2 × 2"),
        ("policy_backward", [np.ones((2, 3)), np.ones((2, 2)), [1], MODEL], "output_gradients.*2"),
        ("policy_backward", [np.ones((1, 3)), np.ones((1, 2)), [np.nan], MODEL], "output_grad.*finite"),
        ("discount_rewards", [[], 0.9], "rewards.*shape any.*got 0"),
        ("discount_rewards", [[[1, 0]], 0.9], "rewards.*shape any.*1 × 2"),
        ("discount_rewards", [NAN, 0.9], "rewards.*finite"),
        ("discount_rewards", [[0, 1], -0.1], "gamma.*0 to 1.*-0.1"),
        ("discount_rewards", [[0, 1], 1.1], "gamma.*0 to 1.*1.1"),
        ("discount_rewards", [[0, 1], np.nan], "gamma.*0 to 1.*nan"),
        ("standardize", [[]], "returns.*shape any"),
        ("standardize", [[np.inf, 0]], "returns.*finite"),
        ("choose_action", [np.nan, np.random.default_rng(0)], "p_up.*0 to 1.*nan"),
        ("choose_action", [1.5, np.random.default_rng(0)], "p_up.*0 to 1.*1.5"),
        ("rmsprop_step", [MODEL, {**CACHE, "W2": NAN[:2]}, CACHE, 1e-4, 0.99], "gradient.*W2.*finite"),
        ("rmsprop_step", [MODEL, {**CACHE, "W1": np.zeros(6)}, CACHE, 1e-4, 0.99], "gradient.*W1.*2 × 3"),
        ("rmsprop_step", [MODEL, CACHE, {**CACHE, "W2": np.zeros(3)}, 1e-4, 0.99], "cache.*W2.*shape 2"),
        ("rmsprop_step", [MODEL, CACHE, CACHE, 1e-4, 1.0], "decay.*below 1"),
        ("rmsprop_step", [MODEL, CACHE, CACHE, 0.0, 0.9], "learning_rate.*above 0"),
        ("rmsprop_step", [MODEL, CACHE, CACHE, np.nan, 0.9], "learning_rate.*above 0"),
        ("train", [None, MODEL, None, 0, 0, 3, 1e-4, 0.99, 0.99], "max_episodes"),
        ("train", [None, MODEL, None, 0, 3, 0, 1e-4, 0.99, 0.99], "batch_size"),
    ],
)  # fmt: skip
def test_bad_input_gets_a_clear_error(chapter, function, arguments, words):
    with pytest.raises(ValueError, match=words):
        getattr(chapter, function)(*arguments)
