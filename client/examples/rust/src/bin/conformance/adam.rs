//! The server's Adam with its defaults, operation by operation, so that its results are the server's bit for bit. Weight
//! decay, clipping and AMSGrad are left out.

const LEARNING_RATE: f64 = 1e-3;
const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f32 = 1e-8;

pub struct Adam {
    pub p: Vec<f32>,
    m: Vec<f32>,
    v: Vec<f32>,
    step: u64,
}

impl Adam {
    pub fn new(p: Vec<f32>) -> Self {
        Self {
            m: vec![0.0; p.len()],
            v: vec![0.0; p.len()],
            p,
            step: 0,
        }
    }

    pub fn update(&mut self, gradient: &[f32]) {
        self.step += 1;
        let step_size = flush((LEARNING_RATE / (1.0 - power(BETA1, self.step))) as f32);
        let inv_sqrt_bc2 = (1.0 / (1.0 - power(BETA2, self.step)).sqrt()) as f32;
        let (beta1, omb1) = (BETA1 as f32, (1.0 - BETA1) as f32);
        let (beta2, omb2) = (BETA2 as f32, (1.0 - BETA2) as f32);
        let g_min = ((2f64.powi(-125) / (1.0 - BETA2)).sqrt() as f32).max(f32::MIN_POSITIVE);
        for (i, &g) in gradient.iter().enumerate() {
            let g = if g.abs() >= g_min { g } else { 0.0 };
            // mul_add rounds once, with or without the instruction.
            self.m[i] = flush(beta1.mul_add(self.m[i], omb1 * g));
            self.v[i] = flush(beta2.mul_add(self.v[i], omb2 * (g * g)));
            let d = self.v[i].sqrt().mul_add(inv_sqrt_bc2, EPS);
            self.p[i] = (-step_size).mul_add(self.m[i] / d, self.p[i]);
        }
    }
}

/// Squares repeatedly: what `powi` gives may differ in the last bit.
fn power(mut base: f64, mut exponent: u64) -> f64 {
    let mut power = 1.0;
    while exponent > 0 {
        if exponent % 2 == 1 {
            power *= base;
        }
        base *= base;
        exponent /= 2;
    }
    power
}

fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0 } else { x }
}
