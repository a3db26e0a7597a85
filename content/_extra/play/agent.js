// The network of "Train to win": two pictures, the last action, and a constant 1 go
// through 200 hidden units, once as they are and once upside down.

const CELLS = 2560, INPUTS = 2 * CELLS + 3;

const halfToFloat = (half) => {
  const sign = half & 0x8000 ? -1 : 1, exponent = (half >> 10) & 31, fraction = half & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
};

const DECODERS = {
  I8: [1, (bytes) => new Int8Array(bytes)],
  F16: [2, (bytes) => Float32Array.from(new Uint16Array(bytes), halfToFloat)],
  F32: [4, (bytes) => new Float32Array(bytes)],
};

// The arrays in a safetensors file: the length of the header, the header, the numbers.
export function parseSafetensors(buffer) {
  const length = buffer.byteLength < 8 ? Infinity : Number(new DataView(buffer).getBigUint64(0, true));
  let header;
  try {
    header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, Math.min(length, 1e5))));
  } catch {
    throw new Error("this is no file of weights");
  }
  const arrays = {};
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(header)
    .filter(([name]) => name !== "__metadata__")) {
    const [size, decode] = DECODERS[dtype] ?? [];
    if (!decode || to - from !== size * shape.reduce((a, b) => a * b, 1)) {
      throw new Error(`the weights have another shape: ${name} ${dtype} ${shape}`);
    }
    if (8 + length + to > buffer.byteLength) throw new Error("the weights are cut off");
    arrays[name] = { shape: shape.join(), data: decode(buffer.slice(8 + length + from, 8 + length + to)) };
  }
  return arrays;
}

// Weights that `save_model` or `save_small_model` wrote: W1 has 16 bits, or 8 bits and a
// factor for each hidden unit.
export function parseWeights(buffer) {
  const { W1, W2, b2, factors } = parseSafetensors(buffer);
  const H = b2 && W2 ? W2.data.length / 4 : 0;
  const fits = W1?.shape === `${INPUTS},${H}` && W2.shape === `${H},4` && b2.shape === "4";
  if (!fits || (factors && factors.shape !== String(H))) {
    throw new Error(`the weights have another shape: ${W1?.shape} and ${W2?.shape}`);
  }
  const scale = factors?.data ?? new Float32Array(H).fill(1);
  if (![scale, W2.data, b2.data].every((array) => array.every(Number.isFinite))) {
    throw new Error("the weights are damaged");
  }
  return { H, scale, W1: W1.data, W2: W2.data, b2: b2.data };
}

export async function loadWeights(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`the weights are missing (${response.status})`);
  return parseWeights(await response.arrayBuffer());
}

// The numbers of the inputs that are 1. `mirrored`: upside down, up and down exchanged.
export function activeInputs({ previous, current, lastAction }, mirrored = false) {
  const active = [];
  [previous, current].forEach((picture, k) => {
    for (let i = 0; i < CELLS; i++) {
      if (picture[i]) active.push(k * CELLS + (mirrored ? (79 - (i >> 5)) * 32 + (i & 31) : i));
    }
  });
  if (lastAction < 2) active.push(2 * CELLS + (mirrored ? 1 - lastAction : lastAction));
  active.push(2 * CELLS + 2);
  return active;
}

function half(active, { H, scale, W1 }) {
  const sums = new Float64Array(H);
  for (const input of active) {
    for (let j = 0, i = input * H; j < H; j++, i++) sums[j] += W1[i];
  }
  return Float32Array.from(sums, (sum, j) => Math.max(sum * scale[j], 0));
}

// Logits for up, down, stay; the probabilities; the value; and both hidden layers.
export function forward(scene, model, mayStay = true) {
  const { H, W2, b2 } = model;
  const hidden = half(activeInputs(scene), model);
  const mirror = half(activeInputs(scene, true), model);
  const logits = [0, 0, 0];
  let value = 2 * b2[3];
  [1, 0, 2].forEach((other, k) => (logits[k] = b2[k] + b2[other]));
  for (let j = 0; j < H; j++) {
    [1, 0, 2].forEach((other, k) => {
      logits[k] += hidden[j] * W2[4 * j + k] + mirror[j] * W2[4 * j + other];
    });
    value += (hidden[j] + mirror[j]) * W2[4 * j + 3];
  }
  if (!mayStay) logits[2] = -1e4;
  const best = Math.max(...logits);
  const powers = logits.map((z) => Math.exp(z - best));
  const total = powers.reduce((a, b) => a + b);
  return { logits, probabilities: powers.map((p) => p / total), value, hidden, mirror };
}

export const greedy = (logits) => logits.indexOf(Math.max(...logits));

// How much each hidden unit, with its mirror image, pushes from down to up.
export function pushes({ hidden, mirror }, { W2 }) {
  return Array.from(hidden, (h, j) => (h - mirror[j]) * (W2[4 * j] - W2[4 * j + 1]));
}
