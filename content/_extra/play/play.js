// The page "Play against it": a court, the reader at the left, the agent at the right.
import { DOWN, STAY, UP, knobFor, newCourt, paint } from "./court.js";
import { loadWeights, pushes } from "./agent.js";
import { Game } from "./game.js";
import { cellCanvas, cells, chart, element, giveUp, meters, round, unitList } from "./dom.js";

const WEIGHTS = new URL("./weights/", import.meta.url);
const FRAME = 1000 / 60, KEPT = 150; // decisions in ten seconds
const KEYS = { ArrowUp: UP, KeyW: UP, ArrowDown: DOWN, KeyS: DOWN };

function button(text, onclick, pressed = null) {
  return element("button.pong-button", { type: "button", onclick, "aria-pressed": pressed }, text);
}

function toggle(text, change) {
  const node = button(text, () => {
    const on = node.getAttribute("aria-pressed") !== "true";
    node.setAttribute("aria-pressed", on);
    change(on);
  }, "false");
  return node;
}

export function mount(root) {
  const canvas = element("canvas.pong-court", {
    width: 160, height: 210, tabindex: 0, role: "application",
    "aria-label": "The court. Move your paddle, the left one, with the arrow keys or W and S.",
  });
  const context = canvas.getContext?.("2d");
  if (!context) return giveUp(root, "this browser has no canvas");
  const reduced = matchMedia("(prefers-reduced-motion: reduce)");
  const state = { game: null, mode: "idle", speed: 1, console: false, models: new Map() };
  const history = { up: [], down: [], stay: [], value: [] };
  const held = new Set();
  let pointerRow = null, waiting = 0, last = null, ticket = 0, announced = "", decisions = 0, gone = false;

  // What there is to see.
  const status = element("p.pong-status", { "aria-live": "polite" }, "First to 21 wins.");
  const start = button("Start", begin);
  const pause = button("Pause", () => setMode(state.mode === "running" ? "paused" : "running"));
  const further = button("One decision further", oneDecision);
  const ages = element("select", { id: "pong-age", onchange: changeAge, disabled: true },
    element("option", {}, "the book’s agent"));
  const older = cellCanvas("The older of the two pictures that the agent gets");
  const newer = cellCanvas("The newer of the two pictures that the agent gets");
  const bars = meters(), units = unitList();
  const odds = chart("Probabilities of up, down, and stay in the last ten seconds", ["up", "down", "stay"], [-0.04, 1.04], 0);
  const value = chart("The value V in the last ten seconds", ["value"], [-1.2, 1.2], 0);
  pause.disabled = further.disabled = true;
  const options = [
    toggle("Slow motion", (on) => (state.speed = on ? 0.25 : 1)),
    toggle("Let the console’s player play", watch),
    toggle("Forbid “stay”", (on) => state.game && (state.game.mayStay = !on)),
    toggle("Hide its older frame", (on) => state.game && (state.game.hideOlder = on)),
  ];
  const title = { role: "heading", "aria-level": 2 };
  const built = element("div.pong-built", {},
    element("div.pong-stage", {}, element("div.pong-bar", {}, start, pause), canvas, status),
    element("div.pong-head", {},
      element("p.pong-title", title, "What it sees"),
      element("div.pong-pictures", {},
        element("figure", {}, older, element("figcaption", {}, "older")),
        element("figure", {}, newer, element("figcaption", {}, "newer"))),
      element("p.pong-title", title, "What it thinks"), bars.box,
      element("p.pong-title", title, "The last ten seconds: P (above) and V"), odds.plot, value.plot,
      element("p.pong-title", title, "The hidden units that push most"), units.box),
    element("div.pong-options", {},
      element("label", { for: "pong-age" }, "How old is it? "), ages, further, ...options));
  for (const node of root.children) node.setAttribute("hidden", "");
  for (const node of root.children) node.classList.add("pong-fallback");
  root.append(built);
  paint(context, newCourt());
  [older, newer].forEach((node) => cells(node, new Uint8Array(2560)));

  const say = (text) => {
    if (text !== announced) status.textContent = announced = text;
  };

  function scoreText() {
    const { leftScore, rightScore } = state.game.court;
    return `${state.console ? "Console" : "You"} ${leftScore}, agent ${rightScore}.`;
  }

  function setMode(mode, reason = "") {
    if (mode === "running" && state.mode !== "running") requestAnimationFrame(loop);
    state.mode = mode;
    canvas.classList.toggle("pong-live", mode === "running"); // else a finger scrolls
    pause.textContent = mode === "paused" ? "Resume" : "Pause";
    pause.disabled = mode !== "running" && mode !== "paused";
    further.disabled = pause.disabled;
    last = null;
    if (mode === "paused") say(`Paused. ${reason}`.trim());
    if (mode === "running") say(scoreText());
    else {
      render.done = null; // the hidden units of this decision, too
      render();
    }
    held.clear();
  }

  async function fetchModel(name) {
    if (!state.models.has(name)) {
      const { file } = state.manifest.find((age) => age.name === name);
      state.models.set(name, await loadWeights(new URL(file, WEIGHTS)));
    }
    return state.models.get(name);
  }

  async function begin() {
    start.disabled = true;
    gone = false; // who has just pressed Start is here
    try {
      if (!state.game) {
        say("Loading the agent …");
        const response = await fetch(new URL("manifest.json", WEIGHTS));
        if (!response.ok) throw new Error(`the list of weights is missing (${response.status})`);
        state.manifest = await response.json();
        ages.replaceChildren(...state.manifest.map(({ name, label }) => element("option", { value: name }, label)));
        ages.value = state.manifest.at(-1).name;
        state.game = new Game(await fetchModel(ages.value), state.random ?? Math.random);
        ages.disabled = false;
      }
    } catch (error) {
      if (!(error instanceof TypeError)) return giveUp(root, error.message);
      start.disabled = false; // fetch has found no connection
      start.focus();
      return say("The agent could not be loaded. Press Start to try again.");
    }
    const [, , forbid, hide] = options.map((node) => node.getAttribute("aria-pressed") === "true");
    Object.assign(state.game, { mayStay: !forbid, hideOlder: hide });
    state.game.restart();
    Object.values(history).forEach((values) => (values.length = 0));
    pointerRow = null;
    waiting = 0;
    start.disabled = false;
    start.textContent = "New game";
    if (gone || document.hidden) return setMode("paused", "The game is ready: press Resume.");
    canvas.focus({ preventScroll: true });
    root.querySelector(".pong-stage").scrollIntoView({ block: "nearest" });
    if (reduced.matches) {
      setMode("paused", "Your system asks for less motion: press Resume when you are ready.");
    } else setMode("running");
  }

  async function changeAge() {
    const mine = ++ticket, name = ages.value;
    if (!state.models.has(name)) say("Loading that agent …");
    try {
      const model = await fetchModel(name);
      if (mine !== ticket) return; // another one has been chosen since
      state.game.model = model;
      const { label, mean } = state.manifest.find((age) => age.name === name);
      say(`Now playing: ${label}. Against the console’s player its mean return is ${round(mean, 1)}.`);
    } catch (error) {
      if (mine !== ticket) return;
      [ages.value] = [...state.models].find(([, model]) => model === state.game.model);
      say(`That agent cannot be loaded: ${error.message}.`);
    }
  }

  function watch(on) {
    state.console = on;
    if (!state.game) return;
    const { left } = state.game.court;
    Object.assign(state.game.court, { leftGoal: left, leftKnob: knobFor(left) });
    if (state.mode === "running") say(scoreText());
  }

  // The reader's action; a mouse or a finger turns the knob at once.
  function leftAction() {
    if (state.console) return null;
    if (pointerRow !== null) {
      state.game.court = { ...state.game.court, leftKnob: knobFor(pointerRow) };
    }
    return held.has(UP) === held.has(DOWN) ? STAY : held.has(UP) ? UP : DOWN;
  }

  function tick() {
    const { game } = state;
    const { leftScore, rightScore } = game.court;
    const thinks = game.frames % 4 === 0;
    game.tick(leftAction());
    if (thinks) remember(game.thought);
    const { court } = game;
    if (leftScore !== court.leftScore || rightScore !== court.rightScore) say(scoreText());
    if (game.over) {
      const agent = court.rightScore > court.leftScore;
      const winner = agent ? "The agent wins" : state.console ? "The console wins" : "You win";
      setMode("over");
      say(`${winner}. ${scoreText()} Press “New game” to play again.`);
    }
  }

  function remember(thought) {
    const newest = { value: thought.value };
    ["up", "down", "stay"].forEach((name, k) => (newest[name] = thought.probabilities[k]));
    for (const [name, values] of Object.entries(history)) {
      values.push(newest[name]);
      if (values.length > KEPT) values.shift();
    }
    decisions += 1;
  }

  function render() {
    paint(context, state.game.court);
    if (!state.game.thought || render.done === decisions) return;
    render.done = decisions;
    const { seen, thought, model } = state.game;
    cells(older, seen.previous);
    cells(newer, seen.current);
    bars.show(thought);
    odds.draw([history.up, history.down, history.stay], KEPT);
    value.draw([history.value], KEPT);
    if (decisions % 4 === 0 || state.mode !== "running") units.show(pushes(thought, model));
  }

  function loop(now) {
    if (state.mode !== "running") return;
    waiting = Math.min(waiting + (last === null ? FRAME : now - last) * state.speed, 6 * FRAME);
    last = now;
    // A little early is better than a frame twice: screens are not exactly 60 Hz.
    for (; waiting > 0.9 * FRAME && state.mode === "running"; waiting -= FRAME) tick();
    render();
    if (state.mode === "running") requestAnimationFrame(loop);
  }

  function oneDecision() {
    if (state.mode === "running") setMode("paused");
    do tick(); while (state.game.frames % 4 !== 0 && state.mode === "paused");
    render();
    if (state.mode !== "paused") return;
    const { action, thought } = state.game;
    const p = round(thought.probabilities[action]);
    say(`Decision ${decisions}: it chose “${["up", "down", "stay"][action]}”, with a probability of ${p}.`);
  }

  // Keys, while the game runs and no other field wants them.
  function onKey(event) {
    // By its place, or by its letter: keyboards differ.
    const action = KEYS[event.code] ?? KEYS[`Key${event.key?.toUpperCase()}`];
    if (event.type === "keyup") return held.delete(action);
    const elsewhere = event.target.closest?.("input, select, textarea, [contenteditable=true]");
    if (!action || elsewhere || event.ctrlKey || event.metaKey || event.altKey) return;
    if (state.mode !== "running") return;
    event.preventDefault();
    pointerRow = null;
    held.add(action);
  }

  function onPointer(event) {
    if (event.type === "pointerdown") canvas.setPointerCapture?.(event.pointerId);
    const { top, height } = canvas.getBoundingClientRect();
    pointerRow = ((event.clientY - top) / height) * 210 - 34 - 8 + 49;
  }

  addEventListener("keydown", onKey);
  addEventListener("keyup", onKey);
  addEventListener("blur", () => held.clear());
  canvas.addEventListener("pointerdown", onPointer);
  canvas.addEventListener("pointermove", onPointer);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && state.mode === "running") setMode("paused", "The page was hidden.");
  });
  if ("IntersectionObserver" in window) new IntersectionObserver((entries) => {
    gone = !entries.at(-1).isIntersecting;
    if (gone && state.mode === "running") setMode("paused", "The game was out of sight.");
  }).observe(built);
  reduced.addEventListener?.("change", () => {
    if (reduced.matches && state.mode === "running") setMode("paused", "Your system asks for less motion.");
  });
  Object.assign(state, { tick, render, history }); // for tests
  root.pong = state;
}
