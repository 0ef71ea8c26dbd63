// A kernel as none may be: the test of ptx_test.cmake.
__global__ void Bad(float* x, int size) {
  float local[64];
  for (int i = 0; i < size; ++i) local[i % 64] = x[i] * 3.0f + x[i + 1];
  for (int i = 0; i < size; ++i) x[i] = __fdividef(local[i * 7 % 64] - 1.0f, x[i]) * 5.0f;
}
