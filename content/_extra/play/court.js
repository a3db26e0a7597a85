// The rules of the console's Pong, line by line those of content/play.md. Positions
// count as the console counts: 49 columns and 48 rows more than in the court. No
// function here changes its arguments, but for the arrays that are to be filled.

export const STAY = 0, UP = 1, DOWN = 2;
const KNOB_MIN = 27450, KNOB_MAX = 790196;
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const even = (row) => Math.floor(row / 2) * 2;

export const newCourt = () => ({
  x: 0, y: 0, vx: -1, vy: 1, left: 22, right: 109, leftGoal: 109, rightGoal: 109,
  leftKnob: 408823, rightKnob: 408823, clock: 7, wait: 59, leftScore: 0, rightScore: 0,
});

export const turn = (knob, action) =>
  clamp(knob + [0, -23000, 23000][action], KNOB_MIN, KNOB_MAX);

// The row that a knob asks for.
export const read = (knob) => Math.max(38, 2 * Math.floor((knob + 31313) / 7988));

// The knob that asks for a row: for a mouse or a finger.
export const knobFor = (row) => clamp((row / 2) * 7988 - 31313 + 3994, KNOB_MIN, KNOB_MAX);

// The upper rows, in the court, of the paddles as they are drawn.
export const paddleTops = (court) => [even(court.left) - 49, even(court.right + 1) - 48];

// The first and last row that the ball fills in a column of the court. The console
// switches it on and off while it draws a line: right of there it is one row early.
export function ballRows(court, column) {
  const [left, right] = paddleTops(court);
  const asked = read(court.clock % 2 ? court.leftKnob : court.rightKnob);
  const early = (line) => {
    const odd = Math.abs(line % 2);
    let place = (odd ? 152 : 133) + (line + odd < asked - 46 ? 6 : 0);
    if (!odd && line >= left - 1 && line <= left + 13) place -= 3;
    if (line >= right - odd && line <= right + 14 - odd) place -= 3;
    return column >= place ? 1 : 0;
  };
  const top = court.y - 48;
  return [top - early(top - 1), top + 3 - early(top + 3)];
}

// Whether the ball is drawn on the left, and on the right paddle.
export function touches(court) {
  const [left, right] = paddleTops(court);
  const { x, y } = court;
  const top = y - 48, early = top - (y % 2);
  return [
    y > 0 && x >= 64 && x <= 68 && top >= left - 3 && top <= left + 15,
    y > 0 && x >= 188 && x <= 192 && early >= right - 3 && early <= right + 15,
  ];
}

// The ball's row and velocity after walls and paddles; a wall comes first.
export function bounce(court) {
  const { y, vx, vy } = court;
  if ((y <= 45 && vy < 0) || (y >= 206 && vy > 0)) return [y - Math.sign(vy), vx, -vy];
  const [byLeft, byRight] = touches(court);
  if (!byLeft && !byRight) return [y, vx, vy];
  const place = y - (byLeft ? court.left : court.right);
  return [y, byLeft ? 1 : -1, Math.floor((place + 3) / 4) - 2];
}

function moveBall(court) {
  const next = { ...court, wait: Math.max(court.wait - 1, 0) };
  if (court.y > 0 && court.wait === 0 && (court.x <= 52 || court.x >= 205)) {
    next.wait = 63;
    next[court.x <= 52 ? "rightScore" : "leftScore"] += 1;
    return next;
  }
  if (court.wait === 63) next.y = 0;
  if (court.wait === 1) {
    next.x = next.y = next.left = 128;
    next.vy = court.vy < 0 ? -1 : 1;
  }
  if (next.y > 0 && next.wait === 0) {
    const [y, vx, vy] = bounce(next);
    Object.assign(next, { x: next.x + vx, y: y + vy, vx, vy });
  }
  return next;
}

// The court one frame later. `left` is an action, or null: then the console plays.
export function step(court, right, left = null) {
  const next = moveBall(court);
  next.clock = (court.clock + 1) % 8;
  next.rightKnob = turn(court.rightKnob, right);
  next.right = court.rightGoal;
  // The two knobs are read in turns, and a paddle goes half of the way.
  if (next.clock % 2 === 0) {
    next.rightGoal = Math.floor((court.rightGoal + read(next.rightKnob)) / 2);
  }
  if (left === null) {
    if (next.clock !== 1) next.left += 2 * Math.sign(next.y - next.left);
    next.left = Math.max(next.left, 0);
  } else {
    next.leftKnob = turn(court.leftKnob, left);
    next.left = court.leftGoal;
    if (next.clock % 2 === 1) {
      next.leftGoal = Math.floor((court.leftGoal + read(next.leftKnob)) / 2);
    }
  }
  return next;
}

// What the agent sees: 80 rows of 32 cells, 1 where something is.
export function objects(court, seen = new Uint8Array(2560)) {
  seen.fill(0);
  const fill = (first, last, cell) => {
    const end = Math.min(last, 159);
    for (let row = Math.max(even(first + 1), 0); row <= end; row += 2) {
      seen[16 * row + cell] = 1;
    }
  };
  const [left, right] = paddleTops(court);
  fill(left, left + 15, 0);
  fill(right, right + 15, 31);
  for (const column of court.y > 0 ? [court.x - 49, court.x - 48] : []) {
    if (column >= 16 && column < 144) {
      fill(...ballRows(court, column), (column - 16) >> 2);
    }
  }
  return seen;
}

const DIGITS = [
  "### .#. ### ### #.# ### #.. ### ### ###", "#.# .#. ..# ..# #.# #.. #.. ..# #.# #.#",
  "#.# .#. ### .## ### ### ### ..# ### ###", "#.# .#. #.. ..# ..# ..# #.# ..# #.# ..#",
  "### .#. ### ### ..# ### ### ..# ### ..#",
];

// Draw the picture of the console, 160 × 210 pixels.
export function paint(context, court) {
  const box = (color, x, y, width, height) => {
    context.fillStyle = color;
    context.fillRect(x, y, width, height);
  };
  const LEFT = "#d5824a", RIGHT = "#5cba5c", WHITE = "#ececec";
  box("#904811", 0, 0, 160, 210);
  const [left, right] = paddleTops(court);
  box(LEFT, 16, 34 + left, 4, 16);
  box(RIGHT, 140, 34 + right, 4, 16);
  for (const column of court.y > 0 ? [court.x - 49, court.x - 48] : []) {
    const [first, last] = ballRows(court, column);
    box(WHITE, column, 34 + first, 1, last - first + 1);
  }
  box("#904811", 0, 0, 160, 24); // nothing shows above the wall but the score
  box(WHITE, 0, 24, 160, 10);
  box(WHITE, 0, 194, 160, 16);
  const score = (points, color, column) => {
    const digit = points % 10;
    DIGITS.forEach((row, i) => [0, 1, 2].forEach((j) => {
      if (row[4 * digit + j] === "#") box(color, column + 4 * j, 1 + 4 * i, 4, 4);
    }));
    if (points > 9) score(Math.floor(points / 10), color, column - 16);
  };
  // A point appears one frame late.
  const late = court.wait === 63 ? 1 : 0, won = court.x < 128 ? 1 : 0;
  score(court.leftScore - late * (1 - won), LEFT, 36);
  score(court.rightScore - late * won, RIGHT, 116);
}
