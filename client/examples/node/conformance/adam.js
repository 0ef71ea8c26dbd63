// The server's Adam with its defaults, operation by operation, so that its results are the server's bit for bit. Weight
// decay, clipping and AMSGrad are left out.
const { abs, fround, sqrt } = Math;
const LEARNING_RATE = 1e-3;
const BETA1 = 0.9;
const BETA2 = 0.999;
const EPS = 1e-8;
const MIN_NORMAL = 2 ** -126;

export class Adam {
  #m;
  #v;
  #step = 0;

  // Updates `p` in place.
  constructor(p) {
    this.p = p;
    this.#m = new Float32Array(p.length);
    this.#v = new Float32Array(p.length);
  }

  update(gradient) {
    const { p } = this;
    const m = this.#m;
    const v = this.#v;
    this.#step += 1;
    const stepSize = flush(fround(LEARNING_RATE / (1 - power(BETA1, this.#step))));
    const invSqrtBc2 = fround(1 / sqrt(1 - power(BETA2, this.#step)));
    const [beta1, beta2, omb1, omb2, eps] = [BETA1, BETA2, 1 - BETA1, 1 - BETA2, EPS].map(fround);
    const gMin = Math.max(fround(sqrt(2 ** -125 / (1 - BETA2))), MIN_NORMAL);
    for (let i = 0; i < p.length; ++i) {
      const g = abs(gradient[i]) >= gMin ? gradient[i] : 0;
      m[i] = flush(fma(beta1, m[i], fround(omb1 * g)));
      v[i] = flush(fma(beta2, v[i], fround(omb2 * fround(g * g))));
      const d = fma(fround(sqrt(v[i])), invSqrtBc2, eps);
      p[i] = fma(-stepSize, fround(m[i] / d), p[i]);
    }
  }
}

// Squares repeatedly: `**` of two engines may differ in the last bit.
function power(base, exponent) {
  let result = 1;
  for (; exponent > 0; exponent = Math.floor(exponent / 2)) {
    if (exponent % 2 === 1) result *= base;
    base *= base;
  }
  return result;
}

function flush(x) {
  return abs(x) >= MIN_NORMAL ? x : 0;
}

const double = new Float64Array(1);
const words = new Uint32Array(double.buffer); // Little-endian: adamant.js sees to it.

// x*y + z of floats with one rounding. The product of two floats is exact in double. Their sum is rounded to odd, which
// keeps enough of what is cut off for the second rounding to be right.
function fma(x, y, z) {
  const product = x * y;
  const sum = product + z;
  const rest = sum - product;
  const lost = product - (sum - rest) + (z - rest);
  if (lost === 0) return fround(sum);
  double[0] = sum;
  if (words[0] % 2 === 0) {
    if (lost > 0 === sum > 0) {
      words[0] += 1;
    } else {
      if (words[0] === 0) words[1] -= 1;
      words[0] -= 1;
    }
  }
  return fround(double[0]);
}
