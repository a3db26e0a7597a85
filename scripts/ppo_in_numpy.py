"""Record what "PPO in NumPy" shows: `python scripts/ppo_in_numpy.py rally`."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy

import gymnasium as gym
import numpy as np
import pandas as pd

from pong.keep_a_training_safe import load_model
from pong.many_games_at_once import (
    choose_actions,
    encode,
    first_scene,
    forward,
    initialize_model,
    log_softmax,
    make_games,
    next_scene,
)
from pong.ppo_in_numpy import new_agent
from pong.set_up import data_file, facts
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


def center(cells):
    """Return the mean row and column of some pixels; NaN without any."""
    return np.mean(np.nonzero(cells), axis=1) if cells.any() else [np.nan] * 2


def objects(frame):
    """Return in pixels of the court where the ball and the paddles are."""
    court = frame[34:194]
    ball_row, ball_column = center(court == 236)
    paddles = {"agent": slice(140, 144), "opponent": slice(16, 20)}
    gray = {"agent": 147, "opponent": 148}
    rows = {
        f"{name}_row": center(court[:, columns] == gray[name])[0]
        for name, columns in paddles.items()
    }
    return {"ball_row": ball_row, "ball_column": ball_column, **rows}


def game(model):
    """Yield the rallies of a game with sampled actions, a row per decision."""
    env = gym.make("ALE/Pong-v5", obs_type="grayscale")
    frame, _ = env.reset(seed=SEED)
    scene, rng = first_scene(frame[None]), np.random.default_rng(SEED)
    rows, game_over = [], False
    while not game_over:
        logits, values, _ = forward(encode(scene), model)
        actions, _ = choose_actions(logits, rng)
        p_up, p_down, p_stay = np.exp(log_softmax(logits))[0].tolist()
        row = {"decision": len(rows), "value": float(values[0])}
        row |= {"p_up": p_up, "p_down": p_down, "p_stay": p_stay}
        row |= {"action": int(actions[0]), **objects(frame)}
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
    """Record a rally won and one lost, by an early and the shipped agent."""
    shipped = load_model(data_file("agent.safetensors"))
    recorded = []
    for name, model in (("early", early_model()), ("shipped", shipped)):
        rallies = [r for r in game(model) if len(r) <= LONGEST]
        for outcome in (1, -1):
            # The longest of its kind, if there is one: the most to see.
            kind = [r for r in rallies if r[-1]["reward"] == outcome]
            recorded += [
                {"agent": name, "outcome": outcome, **row}
                for row in max(kind, key=len, default=[])
            ]
    table = pd.DataFrame(recorded).round(4)
    save_table("rally", table, early=EARLY, game_seed=SEED)


if __name__ == "__main__":
    main({"rally": rally})
