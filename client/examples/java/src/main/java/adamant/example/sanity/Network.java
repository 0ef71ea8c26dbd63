package adamant.example.sanity;

import adamant.v1.TensorSpec;
import java.util.List;
import org.apache.commons.math3.random.MersenneTwister;

/**
 * Linear(2, 16), ReLU, Linear(16, 1) in fp32: for each layer its weights (outputs x inputs, row-major) and biases. Java
 * rounds every product and sum, and fuses none unless it is told to.
 */
final class Network {
  private static final int INPUTS = 2;
  private static final int HIDDEN = 16;

  private Network() {}

  static final List<TensorSpec> TENSORS =
      List.of(
          tensor("layers.0.weight", HIDDEN, INPUTS),
          tensor("layers.0.bias", HIDDEN),
          tensor("layers.1.weight", 1, HIDDEN),
          tensor("layers.1.bias", 1));

  private static TensorSpec tensor(String name, long... shape) {
    var spec = TensorSpec.newBuilder().setName(name);
    for (long extent : shape) {
      spec.addShape(extent);
    }
    return spec.build();
  }

  static float[][] zeros() {
    return new float[][] {new float[HIDDEN * INPUTS], new float[HIDDEN], new float[HIDDEN], new float[1]};
  }

  /** What PyTorch draws after manual_seed(0). */
  static float[][] initialParameters() {
    var random = new MersenneTwister(0);
    double[] fanIn = {INPUTS, INPUTS, HIDDEN, HIDDEN};
    float[][] parameters = zeros();
    for (int i = 0; i < parameters.length; ++i) {
      float k = (float) (1 / Math.sqrt(fanIn[i]));
      for (int j = 0; j < parameters[i].length; ++j) {
        float u = (random.nextInt() & 0xffffff) * 0x1p-24f;
        parameters[i][j] = u * (k + k) - k;
      }
    }
    return parameters;
  }

  /** Returns (output - y)^2, and sets {@code gradient} to its derivative by each parameter. */
  static float lossAndGradient(float[][] parameters, float[] x, float y, float[][] gradient) {
    float[] w1 = parameters[0];
    float[] b1 = parameters[1];
    float[] w2 = parameters[2];
    float[] h = new float[HIDDEN];
    float output = parameters[3][0];
    for (int i = 0; i < HIDDEN; ++i) {
      float z = b1[i];
      for (int j = 0; j < INPUTS; ++j) {
        z += w1[i * INPUTS + j] * x[j];
      }
      h[i] = Math.max(z, 0);
      output += w2[i] * h[i];
    }

    float error = output - y;
    float dOutput = 2 * error;
    gradient[3][0] = dOutput;
    for (int i = 0; i < HIDDEN; ++i) {
      float dz = h[i] > 0 ? dOutput * w2[i] : 0;
      gradient[2][i] = dOutput * h[i];
      gradient[1][i] = dz;
      for (int j = 0; j < INPUTS; ++j) {
        gradient[0][i * INPUTS + j] = dz * x[j];
      }
    }
    return error * error;
  }
}
