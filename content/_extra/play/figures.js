// Figures that answer: each stands in for the static one where there is JavaScript.
import { newCourt, objects, paddleTops, ballRows, paint } from "./court.js";
import { forward, greedy, loadWeights, pushes } from "./agent.js";
import { cellCanvas, cells, chart, element, meters, round, svg, unitList } from "./dom.js";

let count = 0;

// A labeled slider; `show` says what stands behind it.
function slider(label, [min, max, step], value, onchange, show = String) {
  const id = `pong-slider-${(count += 1)}`;
  const output = element("output", { for: id }, show(value));
  const input = element("input", { id, type: "range", min, max, step, value, oninput() {
    output.textContent = show(Number(input.value));
    onchange(Number(input.value));
  } });
  const set = (next) => {
    input.value = next;
    output.textContent = show(Number(input.value));
  };
  return { row: element("div.pong-slider", {}, element("label", { for: id }, label), input, output), set };
}

const signed = (value) => (value > 0 ? `+${value}` : String(value).replace("-", "−"));

// A court whose ball and paddles can be dragged, or moved with sliders. `changed` gets
// the court, and the one four frames earlier.
function stage(changed) {
  const place = { x: 110, y: 60, left: 52, right: 80, vx: 1, vy: 1, slides: 0 };
  const canvas = element("canvas.pong-court", { width: 160, height: 210, role: "img",
    "aria-label": "The court. Drag the ball and the paddles, or use the sliders below." });
  const context = canvas.getContext?.("2d");
  if (!context) return null;
  const sliders = {
    x: slider("Ball, column", [16, 142, 1], place.x, (v) => update({ x: v })),
    y: slider("Ball, row", [0, 156, 1], place.y, (v) => update({ y: v })),
    vx: slider("Ball, columns per frame", [-1, 1, 2], place.vx, (v) => update({ vx: v }), signed),
    vy: slider("Ball, rows per frame", [-2, 2, 1], place.vy, (v) => update({ vy: v }), signed),
    left: slider("Left paddle, row", [-10, 156, 1], place.left, (v) => update({ left: v })),
    right: slider("Right paddle, row", [-10, 156, 1], place.right, (v) => update({ right: v })),
    slides: slider("Right paddle, rows since the older picture", [-24, 24, 2], place.slides, (v) => update({ slides: v }), signed),
  };
  const court = ({ x, y, left, right }) => ({ ...newCourt(), x: x + 49, y: y + 48, left: left + 49, right: right + 48, wait: 0 });

  function update(change) {
    Object.assign(place, change);
    for (const name of Object.keys(change)) sliders[name].set(place[name]);
    const now = court(place);
    const before = court({ ...place, x: place.x - 4 * place.vx, y: place.y - 4 * place.vy, right: place.right - place.slides });
    paint(context, now);
    changed(now, before);
  }

  const range = (value, low, high) => Math.round(Math.min(Math.max(value, low), high));
  let grip = null;
  const at = ({ clientX, clientY }) => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    return [((clientX - left) / width) * 160, ((clientY - top) / height) * 210 - 34];
  };
  const nearest = (event) => {
    const [column, row] = at(event);
    const far = {
      ball: Math.hypot(column - place.x - 1, row - place.y - 2),
      left: Math.hypot(column - 18, (row - place.left - 8) / 2),
      right: Math.hypot(column - 142, (row - place.right - 8) / 2),
    };
    const name = Object.keys(far).reduce((a, b) => (far[b] < far[a] ? b : a));
    return far[name] < 18 ? name : null;
  };
  canvas.addEventListener("pointerdown", (event) => {
    grip = nearest(event);
    if (grip) canvas.setPointerCapture?.(event.pointerId);
    drag(event);
  });
  // A finger that takes hold of something does not scroll the page.
  canvas.addEventListener("touchstart", (event) => {
    if (nearest(event.touches[0])) event.preventDefault();
  }, { passive: false });
  function drag(event) {
    if (!grip) return;
    const [column, row] = at(event);
    if (grip === "ball") update({ x: range(column - 1, 16, 142), y: range(row - 2, 0, 156) });
    else update({ [grip]: range(row - 8, -10, 156) });
  }
  canvas.addEventListener("pointermove", drag);
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (grip = null));
  const box = element("div.pong-stage", {}, canvas, ...Object.values(sliders).map(({ row }) => row));
  return { box, update };
}

// Every second pixel of the court, 80 × 80: what the first agent gets.
export function preprocess(court, picture = new Uint8Array(6400)) {
  picture.fill(0);
  const fill = (column, first, last) => {
    for (let row = Math.max(0, first); row <= Math.min(159, last); row++) {
      if (row % 2 && column % 2 === 0) picture[40 * (row - 1) + column / 2] = 1;
    }
  };
  paddleTops(court).forEach((top, k) => [16, 18].forEach((c) => fill(c + 124 * k, top, top + 15)));
  for (const column of court.y > 0 ? [court.x - 49, court.x - 48] : []) fill(column, ...ballRows(court, column));
  return picture;
}

function framesFigure(root) {
  const names = ["older", "newer", "newer − older"];
  const canvases = names.map((name) => element("canvas.pong-square", { width: 80, height: 80, role: "img", "aria-label": `The court in 80 × 80 numbers: ${name}` }));
  const note = element("p.pong-status", { "aria-live": "off" });
  const scene = stage((now, before) => {
    const pictures = [preprocess(before), preprocess(now)];
    pictures.push(pictures[1].map((v, i) => v - pictures[0][i] + 1));
    let different = 0;
    pictures.forEach((picture, k) => {
      const context = canvases[k].getContext("2d");
      picture.forEach((v, i) => {
        context.fillStyle = k < 2 ? ["#111", "#fff"][v] : ["#111", "#777", "#fff"][v];
        context.fillRect(i % 80, Math.floor(i / 80), 1, 1);
        if (k === 2 && v !== 1) different += 1;
      });
    });
    note.textContent = `${different} of 6,400 numbers of the difference are not zero. What stands still has vanished.`;
  });
  if (!scene) return false;
  root.append(element("div.pong-built", {}, scene.box, element("div.pong-head", {},
    element("div.pong-pictures", {}, ...canvases.map((canvas, k) => element("figure", {}, canvas, element("figcaption", {}, names[k])))), note)));
  scene.update({});
  return true;
}

// Generalized advantage estimates of one rally that ends with its last reward.
export function gae(rewards, values, gamma, lambda) {
  const surprises = rewards.map((r, t) => r + gamma * (t + 1 < rewards.length ? values[t + 1] : 0) - values[t]);
  const advantages = new Array(rewards.length);
  for (let t = rewards.length - 1, later = 0; t >= 0; t--) {
    advantages[t] = later = surprises[t] + gamma * lambda * later;
  }
  return { surprises, advantages };
}

function gaeFigure(root) {
  const { outcome, values } = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const rewards = values.map((_, t) => (t + 1 < values.length ? 0 : outcome));
  const settings = { gamma: 1, lambda: 0.98 };
  const charts = [["V, what it expects", "value", 1.5], ["δ, the surprises", "up", 1.5], ["A, the advantages", "down", 2]]
    .map(([title, color, limit]) => ({ title, ...chart(`${title}, over the decisions of a rally`, [color], [-limit, limit], 0), limit }));
  const note = element("p.pong-status");
  const update = () => {
    const { surprises, advantages } = gae(rewards, values, settings.gamma, settings.lambda);
    [values.slice(0, rewards.length), surprises, advantages].forEach((series, k) => charts[k].draw([series]));
    const reach = 1 / Math.max(1 - settings.gamma * settings.lambda, 1 / rewards.length);
    note.textContent = `A(0) = ${round(advantages[0])}. Credit reaches back about ${Math.round(reach)} of the rally’s ${rewards.length} decisions.`;
  };
  const number = (v) => v.toFixed(2);
  root.append(element("div.pong-built.pong-column", {},
    slider("λ", [0, 1, 0.01], settings.lambda, (v) => { settings.lambda = v; update(); }, number).row,
    slider("γ", [0.8, 1, 0.01], settings.gamma, (v) => { settings.gamma = v; update(); }, number).row,
    ...charts.flatMap(({ title, plot, limit }) => [element("p.pong-title", {}, `${title} (−${limit} to ${limit})`), plot]), note));
  update();
  return true;
}

// The policy's loss for a ratio, with PPO's clip.
export const clipLoss = (ratio, advantage, clip = 0.2) =>
  -Math.min(ratio * advantage, Math.min(Math.max(ratio, 1 - clip), 1 + clip) * advantage);

function clipFigure(root) {
  const ratios = Array.from({ length: 101 }, (_, i) => 0.5 + i / 100);
  const signs = [[1, "up", "A = +1"], [-1, "down", "A = −1"]];
  const { plot, draw } = chart("The loss over the ratio from 0.5 to 1.5: for A = +1 it is flat above 1.2, for A = −1 below 0.8", ["up", "down"], [-1.6, 1.6], 0);
  const marks = signs.map(([, color]) => plot.appendChild(svg("line", { class: `pong-line pong-${color}`, "stroke-linecap": "round", "stroke-width": 9 })));
  const note = element("p.pong-status", { "aria-live": "off" });
  const update = (ratio) => {
    const words = signs.map(([sign, , name], k) => {
      const loss = clipLoss(ratio, sign), flat = sign > 0 ? ratio > 1.2 : ratio < 0.8;
      const x = 100 * (ratio - 0.5), y = 40 * (1 - (loss + 1.6) / 3.2);
      for (const [key, v] of Object.entries({ x1: x, x2: x + 0.01, y1: y, y2: y })) marks[k].setAttribute(key, v);
      return `${name}: loss ${round(loss)}, ${flat ? "flat: nothing more to gain" : "its slope pulls"}`;
    });
    note.textContent = `${words.join(". ")}.`;
  };
  draw(signs.map(([sign]) => ratios.map((ratio) => clipLoss(ratio, sign))));
  const control = slider("ρ, new probability ÷ old", [0.5, 1.5, 0.01], 1, update, (v) => v.toFixed(2));
  const drag = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const { left, width } = plot.getBoundingClientRect();
    const ratio = Math.min(Math.max((event.clientX - left) / width, 0), 1) + 0.5;
    control.set(ratio);
    update(ratio);
  };
  plot.addEventListener("pointerdown", drag);
  plot.addEventListener("pointermove", drag);
  root.append(element("div.pong-built.pong-column", {}, control.row, plot,
    element("p.pong-legend", {}, element("span.pong-up", {}, "A = +1"), " ", element("span.pong-down", {}, "A = −1"), " (loss from −1.6 to 1.6)"), note));
  update(1);
  return true;
}

function agentFigure(root) {
  const older = cellCanvas("The older picture"), newer = cellCanvas("The newer picture");
  const bars = meters(), units = unitList(8);
  const note = element("p.pong-status", { role: "status" }, "The agent is not loaded yet.");
  let model = null, scene = null;
  const show = () => {
    cells(older, scene.previous);
    cells(newer, scene.current);
    if (!model) return;
    const thought = forward(scene, model);
    bars.show(thought);
    units.show(pushes(thought, model));
    note.textContent = `Most probable: ${["up", "down", "stay"][greedy(thought.logits)]}.`;
  };
  const court = stage((now, before) => {
    scene = { previous: objects(before), current: objects(now), lastAction: 2 };
    show();
  });
  if (!court) return false;
  const load = element("button.pong-button", { type: "button", async onclick() {
    load.disabled = true;
    try {
      model = await loadWeights(new URL("./weights/shipped.safetensors", import.meta.url));
      load.remove();
      show();
    } catch (error) {
      note.textContent = `It cannot be loaded: ${error.message}.`;
      load.disabled = false;
    }
  } }, "Load the agent (1 MB)");
  root.append(element("div.pong-built", {}, court.box, element("div.pong-head", {},
    element("div.pong-pictures", {}, element("figure", {}, older, element("figcaption", {}, "older")), element("figure", {}, newer, element("figcaption", {}, "newer"))),
    load, note, bars.box, element("p.pong-title", {}, "The hidden units that push most"), units.box)));
  court.update({});
  return true;
}

const kinds = { frames: framesFigure, gae: gaeFigure, clip: clipFigure, agent: agentFigure };

export function mount(root) {
  const stills = [...root.children];
  if (kinds[root.dataset.figure](root)) stills.forEach((node) => node.setAttribute("hidden", ""));
}
