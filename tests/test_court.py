"""The court against recorded traces, against the emulator, and with the agent."""

import numpy as np
import pytest

import pong.play as play
from pong.keep_a_training_safe import load_model
from pong.many_games_at_once import find_objects
from pong.play import CELLS, Court, new_court, objects, step, to_court, trace
from pong.set_up import data_file


@pytest.fixture(scope="module")
def recorded():
    return list(zip(*play.recorded_games()))


def test_each_frame_follows_from_the_one_before(recorded):
    frames = rallies = 0
    for game, actions in recorded:
        before, after = (
            Court(*(a[:-1] for a in game)),
            Court(*(a[1:] for a in game)),
        )
        predicted, points = step(before, actions)
        playing = (before.y > 0) & (after.y > 0)
        for name in ("x", "y", "vx", "vy", "left", "right", "right_goal"):
            same = getattr(predicted, name) == getattr(after, name)
            assert same[playing].all(), name
        frames, rallies = (
            frames + playing.sum(),
            rallies + np.abs(points).sum(),
        )
        assert points.sum() == game.right_score[-1] - game.left_score[-1]
    assert rallies >= 200 and frames > 50_000


def test_whole_games_run_free(recorded):
    games = recorded[3:8]  # side by side, each to its end
    n_frames = [len(actions) for _, actions in games]
    court = new_court(len(games))
    for t in range(max(n_frames)):
        now = [
            actions[t] if t < n else 0
            for (_, actions), n in zip(games, n_frames)
        ]
        court, _ = step(court, np.array(now))
        for name in ("y", "left", "right", "left_score", "right_score"):
            for g, (game, _) in enumerate(games):
                if t < n_frames[g]:
                    assert (
                        getattr(court, name)[g] == getattr(game, name)[t + 1]
                    )


def follower(seed, n):
    """Return what a player does who follows the ball, but not quite."""
    rng, court, actions = np.random.default_rng(seed), new_court(1), []
    for _ in range(n):
        away = court.y[0] - 8 + rng.integers(-8, 9) - court.right_goal[0]
        action = play.DOWN if away > 4 else play.UP if away < -4 else play.STAY
        actions.append(action if court.y[0] else play.STAY)
        court, _ = step(court, np.array(actions[-1:]))
    return np.array(actions)


@pytest.mark.parametrize("kind", ["random", "follower"])
def test_pictures_are_the_emulators(kind):
    actions = np.repeat(np.random.default_rng(70).integers(0, 3, 350), 7)
    if kind == "follower":
        actions = follower(71, 2500)
    memory, pictures = trace(actions)
    court = to_court(memory[:, list(CELLS.values())], actions)
    assert np.array_equal(objects(court), find_objects(pictures))
    for t in range(2, len(pictures)):  # the first two have other colors
        assert np.array_equal(play.draw(court, t), pictures[t]), t


def test_one_player_or_two_make_the_same_court():
    """A left player who leaves the knob alone is no worse than none: no crash, same ball."""
    court, nobody = new_court(4), np.zeros(4, int)
    for _ in range(600):
        court, _ = step(court, nobody, nobody)
    assert (court.left == court.right).all()
    assert (court.left_score + court.right_score >= 1).all()


def test_steps_leave_their_input_alone():
    court = new_court(3)
    before = [a.copy() for a in court]
    step(court, np.array([0, 1, 2]), np.array([2, 1, 0]))
    assert all(map(np.array_equal, before, court))


def test_the_agent_keeps_its_strength():
    returns = play.play_on_court(
        10, load_model(data_file("agent.safetensors")), seed=3
    )
    assert returns.mean() >= 15 and returns.min() >= 0
