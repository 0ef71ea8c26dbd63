//! Linear(2, 16), ReLU, Linear(16, 1) in fp32: for each layer its weights (outputs x inputs, row-major) and biases. Rust
//! fuses nothing by itself, so that every product and sum is rounded, as those of the reference are.

use adamant_example::Tensor;
use adamant_example::v1::TensorSpec;
use rand_mt::Mt;

const INPUTS: usize = 2;
const HIDDEN: usize = 16;
const TENSORS: [(&str, &[i64]); 4] = [
    ("layers.0.weight", &[HIDDEN as i64, INPUTS as i64]),
    ("layers.0.bias", &[HIDDEN as i64]),
    ("layers.1.weight", &[1, HIDDEN as i64]),
    ("layers.1.bias", &[1]),
];

pub fn tensor_specs() -> Vec<TensorSpec> {
    TENSORS
        .iter()
        .map(|(name, shape)| TensorSpec {
            name: name.to_string(),
            shape: shape.to_vec(),
            ..Default::default()
        })
        .collect()
}

pub fn zeros() -> Vec<Tensor> {
    TENSORS
        .iter()
        .map(|(_, shape)| vec![0.0; shape.iter().product::<i64>() as usize])
        .collect()
}

/// What PyTorch draws after manual_seed(0).
pub fn initial_parameters() -> Vec<Tensor> {
    let mut random = Mt::new(0);
    let mut parameters = zeros();
    for (tensor, fan_in) in parameters.iter_mut().zip([INPUTS, INPUTS, HIDDEN, HIDDEN]) {
        let k = (1.0 / (fan_in as f64).sqrt()) as f32;
        for weight in tensor {
            let u = (random.next_u32() & 0xff_ffff) as f32 / (1 << 24) as f32;
            *weight = u * (k + k) - k;
        }
    }
    parameters
}

/// Returns (output - y)^2, and sets `gradient` to its derivative by each parameter.
pub fn loss_and_gradient(parameters: &[Tensor], x: [f32; INPUTS], y: f32, gradient: &mut [Tensor]) -> f32 {
    let [w1, b1, w2, b2] = parameters else {
        panic!("expected the network's four tensors");
    };
    let mut h = [0.0; HIDDEN];
    let mut output = b2[0];
    for i in 0..HIDDEN {
        let z = (0..INPUTS).fold(b1[i], |z, j| z + w1[i * INPUTS + j] * x[j]);
        h[i] = f32::max(z, 0.0);
        output += w2[i] * h[i];
    }

    let error = output - y;
    let d_output = 2.0 * error;
    gradient[3][0] = d_output;
    for i in 0..HIDDEN {
        let dz = if h[i] > 0.0 { d_output * w2[i] } else { 0.0 };
        gradient[2][i] = d_output * h[i];
        gradient[1][i] = dz;
        for j in 0..INPUTS {
            gradient[0][i * INPUTS + j] = dz * x[j];
        }
    }
    error * error
}
