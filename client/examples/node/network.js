// Linear(2, 16), ReLU, Linear(16, 1) in fp32, every product and sum rounded, in the order of the reference: a number of
// JavaScript is a double, and Math.fround what makes a float of it.
import MersenneTwister from 'mersenne-twister';

const { fround } = Math;
const INPUTS = 2;
const HIDDEN = 16;

export const TENSORS = [
  { name: 'layers.0.weight', shape: [HIDDEN, INPUTS] },
  { name: 'layers.0.bias', shape: [HIDDEN] },
  { name: 'layers.1.weight', shape: [1, HIDDEN] },
  { name: 'layers.1.bias', shape: [1] },
];

export const zeros = () => TENSORS.map(({ shape }) => new Float32Array(shape.reduce((a, b) => a * b)));

// What PyTorch draws after manual_seed(0).
export function initialParameters() {
  const random = new MersenneTwister(0);
  const fanIn = [INPUTS, INPUTS, HIDDEN, HIDDEN];
  return zeros().map((tensor, i) => {
    const k = fround(1 / Math.sqrt(fanIn[i]));
    return tensor.map(() => fround(fround((random.random_int() & 0xffffff) * 2 ** -24 * fround(k + k)) - k));
  });
}

// Returns (output - y)^2, and sets `gradient` to its derivative by each parameter.
export function lossAndGradient([w1, b1, w2, b2], x, y, gradient) {
  const h = new Float32Array(HIDDEN);
  let output = b2[0];
  for (let i = 0; i < HIDDEN; ++i) {
    let z = b1[i];
    for (let j = 0; j < INPUTS; ++j) z = fround(z + fround(w1[i * INPUTS + j] * x[j]));
    h[i] = Math.max(z, 0);
    output = fround(output + fround(w2[i] * h[i]));
  }

  const error = fround(output - y);
  const dOutput = 2 * error;
  const [dw1, db1, dw2, db2] = gradient;
  db2[0] = dOutput;
  for (let i = 0; i < HIDDEN; ++i) {
    dw2[i] = dOutput * h[i];
    db1[i] = h[i] > 0 ? dOutput * w2[i] : 0;
    for (let j = 0; j < INPUTS; ++j) dw1[i * INPUTS + j] = db1[i] * x[j];
  }
  return fround(error * error);
}
