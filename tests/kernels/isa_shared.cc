// What symbols_test must refuse: an instruction set's file that shares code with the program. It defines a template's
// instance that a linker may keep for all, calls one of another file, and has no table.
namespace adamant::kernels {

template <typename T>
[[gnu::noinline]] T Doubled(T x) {
  return x + x;
}

template <typename T>
T Tripled(T x);

float Sixfold(float x) { return Doubled(Tripled(x)); }

}  // namespace adamant::kernels
