"""Record what "PPO in NumPy" shows: `python scripts/ppo_in_numpy.py rally`."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy

import gymnasium as gym
import numpy as np
import pandas as pd

from pong.many_games_at_once import (
    choose_actions,
    encode,
    first_scene,
    forward,
    initialize_model,
    make_games,
    next_scene,
)
from pong.ppo_in_numpy import new_agent
from pong.set_up import facts
from pong.train_to_win import new_run, training
from recording import main, save_table

EARLY = {"seed": 1, "decisions": 204_800}  # it returns balls, and still loses
SEED = 200_000  # of the game and of its actions; no training sees it
LONGEST = 160  # decisions in a rally: more can't be drawn well


def early_model():
    """Return the weights of an agent that has just begun to learn."""
    settings = facts("agent")["settings"] | {"decisions": 3_500_000}
    rng = np.random.default_rng(EARLY["seed"])
    start = new_run(new_agent(initialize_model(rng)), EARLY["seed"], False)
    for run, _ in training(make_games(32), start, EARLY["seed"], settings):
        if run.decisions >= EARLY["decisions"]:
            return run.agent.model


def ball_column(frame):
    """Return where the ball is, in pixels; NaN without one."""
    _, columns = np.nonzero(frame[34:194] == 236)
    return columns.mean() if columns.size else np.nan


def game(model):
    """Yield the rallies of a game with sampled actions, a row per decision."""
    env = gym.make("ALE/Pong-v5", obs_type="grayscale")
    frame, _ = env.reset(seed=SEED)
    scene, rng = first_scene(frame[None]), np.random.default_rng(SEED)
    rows, game_over = [], False
    while not game_over:
        logits, values, _ = forward(encode(scene), model)
        actions, _ = choose_actions(logits, rng)
        row = {"decision": len(rows), "ball_column": ball_column(frame)}
        row |= {"value": float(values[0])}
        frame, reward, terminated, truncated, _ = env.step(
            (2, 3, 0)[actions[0]]
        )
        game_over = terminated or truncated
        rows.append(row | {"reward": reward})
        scene = next_scene(scene, actions, frame[None], np.array([game_over]))
        if reward:
            yield rows
            rows = []
    env.close()


def rally():
    """Record a rally that an early agent wins."""
    rallies = [r for r in game(early_model()) if len(r) <= LONGEST]
    # The longest one: the most to see.
    won = max((r for r in rallies if r[-1]["reward"] == 1), key=len)
    table = pd.DataFrame(won).round(4)
    save_table("rally", table, early=EARLY, game_seed=SEED)


if __name__ == "__main__":
    main({"rally": rally})
