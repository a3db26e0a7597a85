"""The court against the emulator, and with the agent; the page prints the rest."""

import numpy as np

import pong.play as play
from conftest import CONTENT
from play_numbers import follower
from pong.inside_the_agent import read_ram, watch
from pong.keep_a_training_safe import load_small_model
from pong.many_games_at_once import find_objects
from pong.play import CELLS, Court, objects, step, to_court, trace
from pong.set_up import data_file, recorded


def test_pictures_are_the_emulators():
    actions = follower(71, 1500, 1)[0][:, 0, 0]
    memory, pictures = trace(actions)
    court = to_court(memory[:, list(CELLS.values())], actions)
    np.testing.assert_array_equal(objects(court), find_objects(pictures))
    for t in range(2, len(pictures)):  # the first two have other colors
        assert np.array_equal(play.draw(court, t), pictures[t]), t


def test_two_players_on_the_emulator():
    """The left paddle is exact when a player moves it, and the ball nearly always."""
    with np.load(data_file("court-two-players.npz")) as file:
        cells = np.cumsum(file["changes"], axis=1, dtype=np.uint8).T
        right, left = file["actions"].astype(int)
    court = to_court(cells[:, : len(CELLS)], right)
    knob = court.left_knob.copy()
    for t, action in enumerate(left, 1):
        knob[t] = play.turn(knob[t - 1], action)
    goal = cells[:, len(CELLS)].astype(int)
    court = court._replace(left_knob=knob, left_goal=goal)
    after = Court(*(a[1:] for a in court))
    predicted, _ = step(Court(*(a[:-1] for a in court)), right, left)
    same = {k: getattr(predicted, k) == getattr(after, k) for k in Court._fields}
    for name in ("left", "left_goal", "right", "right_goal"):
        assert same[name].all(), name
    flying = (court.y[:-1] > 0) & (after.y > 0)
    wrong = (~(same["x"] & same["y"]) & flying).sum()
    assert (flying.sum(), wrong) == (39_817, 3)  # the page says so
    by_left = flying & (court.x[:-1] < 128) & (after.vx > court.vx[:-1])
    assert by_left.sum() > 100


def test_recorded_rallies_are_the_agents():
    rallies, ages = recorded("rallies"), recorded("ages")
    assert set(rallies["age"]) == set(ages["decisions"])
    weights = CONTENT / "_extra" / "play" / "weights" / ages["file"].iloc[-1]
    (game,) = watch(load_small_model(weights), [100_002])
    mine = rallies.query("age == age.max() and seed == 100_002")
    assert mine["reward"].tolist() == game.rewards[: len(mine)].tolist()
    for name, values in read_ram(game.ram[: len(mine)]).items():
        np.testing.assert_array_equal(mine[name], values)
    # What the page says of them.
    ends = rallies.groupby(["age", "seed"])["reward"].last().unstack("seed")
    assert (ends.loc[0] == -1).all() and (ends.loc[1_000_000:] == 1).all(axis=None)
    assert ends.loc[100_000].tolist() == [1, -1, -1]
    strokes = {}
    for key, rally in rallies.groupby(["age", "seed"]):
        right, down = (rally[f"ball {axis}"].diff().to_numpy() for axis in "xy")
        hit = (right[:-1] >= 0) & (right[1:] < 0) & (rally["ball x"][:-1] > 130)
        (hits,) = np.nonzero(hit)
        strokes |= {key: down[hits[0] + 2]} if len(hits) else {}
    assert strokes.pop((400_000, 100_002)) == 4
    assert len(strokes) == 9 and set(strokes.values()) == {-8}  # all that were won
