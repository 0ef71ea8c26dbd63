// A kernel that needs more registers than it is given: the test of what says so.
__global__ void Spill(const float* from, float* to) {
  float kept[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) kept[i] = from[i * 1024 + threadIdx.x];
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 96; ++i) sum = __fmaf_rn(sum, kept[i], kept[95 - i]);
  to[threadIdx.x] = sum;
}
