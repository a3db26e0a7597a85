# Made by `make notebooks` from content/play.md: edit that.

from typing import NamedTuple

import ale_py
import numpy as np
from ale_py.roms import get_rom_path

from pong.many_games_at_once import Scene, choose_actions, encode, forward
from pong.set_up import data_file


def trace(actions):
    """Return memory (T + 1, 128) and gray pictures (T + 1, 210, 160)."""
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.setInt("frame_skip", 1)
    ale.loadROM(get_rom_path("pong"))
    ale.reset_game()
    buttons = (ale_py.Action.NOOP, ale_py.Action.RIGHT, ale_py.Action.LEFT)
    memory, pictures = [], []
    for action in (None, *actions):
        if action is not None:
            ale.act(buttons[action])
        memory.append(ale.getRAM().copy())
        pictures.append(ale.getScreenGrayscale().reshape(210, 160).copy())
    return np.array(memory), np.array(pictures)


STAY = 0  # what a player can do
UP = 1
DOWN = 2


CELLS = {
    "clock": 8,  # counts the frames
    "wait": 11,  # counts down to the serve
    "left_score": 13,
    "right_score": 14,
    "left": 21,  # upper row of the left paddle
    "x": 49,  # column of the ball
    "right": 51,  # upper row of the right paddle
    "y": 54,  # row of the ball, 0 if there is none
    "vy": 56,  # rows per frame
    "vx": 58,  # columns per frame, with the wrong sign
    "right_goal": 60,  # where the right paddle will be next
}


def turn(knob, actions):
    """Return the resistance of the knobs one frame later, in ohms."""
    step = np.array([0, -23_000, 23_000])[actions]
    return np.clip(knob + step, 27_450, 790_196)


def read(knob):
    """Return the row that a knob asks for."""
    return np.maximum(38, 2 * ((knob + 31_313) // 7_988))


class Court(NamedTuple):
    """n games between two frames, all arrays int, shape (n,).

    Rows and columns are the console's: 48 and 49 more than in the court.
    """

    x: np.ndarray  # left column of the ball
    y: np.ndarray  # its upper row; 0 while there is no ball
    vx: np.ndarray  # columns per frame: -1 to the left, 1 to the right
    vy: np.ndarray  # rows per frame, positive is down
    left: np.ndarray  # upper row of the left paddle
    right: np.ndarray  # and of the right one
    left_goal: np.ndarray  # where the left paddle will be next
    right_goal: np.ndarray
    left_knob: np.ndarray  # resistances, in ohms
    right_knob: np.ndarray
    clock: np.ndarray  # frames, modulo 8
    wait: np.ndarray  # frames until the serve
    left_score: np.ndarray
    right_score: np.ndarray


START = {"vx": -1, "vy": 1, "left": 22, "right": 109, "clock": 7, "wait": 59}
START |= {"left_goal": 109, "right_goal": 109}
START |= {"left_knob": 408_823, "right_knob": 408_823}


def new_court(n):
    """Return n games as they are after a reset."""
    zeros = dict.fromkeys(Court._fields, 0)
    return Court(**{k: np.full(n, v) for k, v in (zeros | START).items()})


def to_court(cells, actions):  # bytes (T + 1, 11), in the order of CELLS; (T,)
    """Return the frames of a trace as one Court."""
    n = len(cells)
    court = new_court(n)._asdict() | dict(zip(CELLS, cells.T.astype(int)))
    for name in ("vx", "vy"):
        court[name] = (court[name] + 128) % 256 - 128  # a byte with a sign
    court["vx"] = np.where(court["vx"] == 0, START["vx"], -court["vx"])
    court["y"][0] = 0  # a leftover
    idle = (court["y"] == 0) | (court["wait"] == 63)
    court["wait"] = np.where(idle, court["wait"], 0)  # the byte's other uses
    court["clock"] %= 8
    for t, action in enumerate(actions, 1):
        court["right_knob"][t] = turn(court["right_knob"][t - 1], action)
    return Court(**court)


def recorded_games():
    """Return the recorded games: a list of Court, and of actions."""
    with np.load(data_file("court-traces.npz")) as file:
        cells = np.cumsum(file["changes"], axis=1, dtype=np.uint8).T
        ends, actions = file["starts"][1:-1], file["actions"].astype(int)
    cells, actions = np.split(cells, ends), np.split(actions, ends)
    actions = [a[:-1] for a in actions]  # the last frame has none
    return list(map(to_court, cells, actions)), actions


def paddle_tops(court):
    """Return the upper rows of both paddles as drawn, 0 is the court's."""
    return court.left // 2 * 2 - 49, (court.right + 1) // 2 * 2 - 48


def touches(court):
    """Return whether the ball is drawn on the left and the right paddle."""
    left, right = paddle_tops(court)
    top, playing = court.y - 48, court.y > 0
    at_left = playing & (court.x >= 64) & (court.x <= 68)
    at_right = playing & (court.x >= 188) & (court.x <= 192)
    early = top - court.y % 2  # see "What the picture shows"
    return (
        at_left & (top >= left - 3) & (top <= left + 15),
        at_right & (early >= right - 3) & (early <= right + 15),
    )


def bounce(court):
    """Return the ball's row and velocity after walls and paddles."""
    y, vx, vy = court.y, court.vx, court.vy
    wall = ((y <= 45) & (vy < 0)) | ((y >= 206) & (vy > 0))
    by_left, by_right = touches(court)
    paddle = (by_left | by_right) & ~wall
    place = y - np.where(by_left, court.left, court.right)
    new_vy = np.where(paddle, (place + 3) // 4 - 2, vy)
    new_vy = np.where(wall, -vy, new_vy)
    new_vx = np.where(paddle, np.where(by_left, 1, -1), vx)
    return y + wall * np.sign(new_vy), new_vx, new_vy


def serve(court, now):  # bool, (n,)
    """Return the court with a new ball in the middle, in some of the games."""
    middle = {name: np.full_like(court.x, 128) for name in ("x", "y", "left")}
    middle["vy"] = np.where(court.vy < 0, -1, 1)
    return court._replace(
        **{k: np.where(now, v, getattr(court, k)) for k, v in middle.items()}
    )


def move_ball(court):
    """Return the court after the ball's frame, and the right side's points."""
    playing = (court.y > 0) & (court.wait == 0)
    out = playing & ((court.x <= 52) | (court.x >= 205))
    points = out * np.where(court.x <= 52, 1, -1)
    gone = np.where(court.wait == 63, 0, court.y)
    court = serve(court._replace(y=gone), court.wait == 1)
    wait = np.where(out, 63, np.maximum(court.wait - 1, 0))
    y, vx, vy = bounce(court)
    flies = (court.y > 0) & (wait == 0)
    return court._replace(
        x=court.x + flies * vx,
        y=np.where(flies, y + vy, court.y),
        vx=np.where(flies, vx, court.vx),
        vy=np.where(flies, vy, court.vy),
        wait=wait,
        left_score=court.left_score + (points < 0),
        right_score=court.right_score + (points > 0),
    ), points


def console_player(court):
    """Return where the console's player moves the left paddle."""
    step = 2 * np.sign(court.y - court.left)
    rests = court.clock % 8 == 1
    return np.maximum(np.where(rests, court.left, court.left + step), 0)


def follow(knob, goal, actions, now):
    """Return knob and goal of paddles one frame later; read if `now`."""
    knob = turn(knob, actions)
    return knob, np.where(now, (goal + read(knob)) // 2, goal)


def step(court, right, left=None):  # actions, (n,); else the console plays
    """Return the court one frame later, and the right side's points."""
    clock = (court.clock + 1) % 8
    knob, goal = follow(
        court.right_knob, court.right_goal, right, clock % 2 == 0
    )
    later, points = move_ball(court)
    later = later._replace(
        clock=clock, right=court.right_goal, right_goal=goal, right_knob=knob
    )
    if left is None:
        return later._replace(left=console_player(later)), points
    knob, goal = follow(court.left_knob, court.left_goal, left, clock % 2 == 1)
    return later._replace(
        left=court.left_goal, left_goal=goal, left_knob=knob
    ), points


def ball_rows(court, column):
    """Return the first and last row that the ball fills in columns."""
    left, right = paddle_tops(court)
    even_frame = court.clock % 2 == 0
    asked = read(np.where(even_frame, court.right_knob, court.left_knob))

    def early(line):
        odd = line % 2
        place = np.where(odd, 152, 133) + 6 * (line + odd < asked - 46)
        by_left = (odd == 0) & (line >= left - 1) & (line <= left + 13)
        by_right = (line >= right - odd) & (line <= right + 14 - odd)
        return column >= place - 3 * by_left - 3 * by_right

    top = court.y - 48
    return top - early(top - 1), top + 3 - early(top + 3)


def objects(court):
    """Return the objects in the pictures, bool, shape (n, 80, 32)."""
    seen = np.zeros((len(court.x), 80, 32), bool)
    rows = np.arange(0, 160, 2)
    for top, cell in zip(paddle_tops(court), (0, 31)):
        top = top[:, None]
        seen[:, :, cell] = (rows >= top) & (rows <= top + 15)
    for column in (court.x - 49, court.x - 48):
        games = (court.y > 0) & (column >= 16) & (column < 144)
        games = np.flatnonzero(games)
        first, last = (row[games, None] for row in ball_rows(court, column))
        cells = (column[games] - 16) // 4
        seen[games, :, cells] |= (rows >= first) & (rows <= last)
    return seen


DIGITS = (
    "### .#. ### ### #.# ### #.. ### ### ###",
    "#.# .#. ..# ..# #.# #.. #.. ..# #.# #.#",
    "#.# .#. ### .## ### ### ### ..# ### ###",
    "#.# .#. #.. ..# ..# ..# #.# ..# #.# ..#",
    "### .#. ### ### ..# ### ### ..# ### ..#",
)


def draw_score(picture, score, gray, column):
    """Write a score into a picture; the digits are 12 × 20 pixels."""
    for place, value in enumerate(str(score)[::-1]):
        rows = [[c == "#" for c in row.split()[int(value)]] for row in DIGITS]
        large = np.repeat(np.repeat(rows, 4, axis=0), 4, axis=1)
        start = column - 16 * place
        picture[1:21, start : start + 12][large] = gray


def draw(court, game=0):
    """Return the gray picture of one of the games, (210, 160)."""
    one = Court(*(a[[game]] for a in court))
    picture = np.full((210, 160), 87, np.uint8)
    picture[0, :8] = 0
    late, won = one.wait[0] == 63, one.x[0] < 128
    draw_score(picture, one.left_score[0] - (late and not won), 148, 36)
    draw_score(picture, one.right_score[0] - (late and won), 147, 116)
    rows = picture[34:194]
    for top, gray, column in zip(paddle_tops(one), (148, 147), (16, 140)):
        first, end = np.maximum([top[0], top[0] + 16], 0)
        rows[first:end, column : column + 4] = gray
    for column in (one.x - 49, one.x - 48) if one.y[0] else ():
        first, last = (row[0] for row in ball_rows(one, column))
        rows[max(first, 0) : max(last + 1, 0), column[0]] = 236
    picture[24:34] = picture[194:] = 236
    return picture


def play_on_court(n, model, seed, rng=None):  # rng draws actions; else greedy
    """Return the returns of n games to 21 against the console's player."""
    luck, court = np.random.default_rng(seed), new_court(n)
    seen, nothing = objects(court), np.zeros(n, bool)
    scene = Scene(seen, seen, np.zeros((n, 2), bool), nothing)
    held, returns = np.zeros(n, int), np.zeros(n, int)
    playing = ~nothing
    while playing.any():
        logits, _, _ = forward(encode(scene), model)
        actions, _ = choose_actions(logits, rng)
        wanted = np.array([UP, DOWN, STAY])[actions]
        for _ in range(4):
            held = np.where(luck.random(n) < 0.25, held, wanted)  # sticky
            court, points = step(court, held)
            returns += points * playing
            playing &= np.maximum(court.left_score, court.right_score) < 21
        last = actions[:, None] == [0, 1]
        scene = Scene(scene.current, objects(court), last, nothing)
    return returns
