// What symbols_test must refuse: an instruction set's file that defines a template's instance for the whole program.
namespace adamant::kernels {

template <typename T>
[[gnu::noinline]] T Doubled(T x) {
  return x + x;
}

float AdamAvx2(float x) { return Doubled(x); }

}  // namespace adamant::kernels
