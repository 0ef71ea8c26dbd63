package adamant.example.conformance;

/**
 * The server's Adam with its defaults, operation by operation, so that its results are the server's bit for bit. Weight
 * decay, clipping and AMSGrad are left out.
 */
final class LocalAdam {
  private static final double LEARNING_RATE = 1e-3;
  private static final double BETA1 = 0.9;
  private static final double BETA2 = 0.999;
  private static final float EPS = 1e-8f;

  final float[] p;
  private final float[] m;
  private final float[] v;
  private int step = 0;

  /** Updates {@code p} in place. */
  LocalAdam(float[] p) {
    this.p = p;
    m = new float[p.length];
    v = new float[p.length];
  }

  void update(float[] gradient) {
    ++step;
    float stepSize = flush((float) (LEARNING_RATE / (1 - power(BETA1, step))));
    float invSqrtBc2 = (float) (1 / Math.sqrt(1 - power(BETA2, step)));
    float beta1 = (float) BETA1;
    float beta2 = (float) BETA2;
    float omb1 = (float) (1 - BETA1);
    float omb2 = (float) (1 - BETA2);
    float gMin = Math.max((float) Math.sqrt(0x1p-125 / (1 - BETA2)), Float.MIN_NORMAL);
    for (int i = 0; i < p.length; ++i) {
      float g = Math.abs(gradient[i]) >= gMin ? gradient[i] : 0;
      m[i] = flush(Math.fma(beta1, m[i], omb1 * g));
      v[i] = flush(Math.fma(beta2, v[i], omb2 * (g * g)));
      float d = Math.fma((float) Math.sqrt(v[i]), invSqrtBc2, EPS);
      p[i] = Math.fma(-stepSize, m[i] / d, p[i]);
    }
  }

  /** Squares repeatedly: Math.pow may be off by one in the last place. */
  private static double power(double base, int exponent) {
    double power = 1;
    for (; exponent > 0; exponent /= 2) {
      if (exponent % 2 == 1) {
        power *= base;
      }
      base *= base;
    }
    return power;
  }

  private static float flush(float x) {
    return Math.abs(x) < Float.MIN_NORMAL ? 0 : x;
  }
}
