package main

import "math"

// adam is the server's Adam with its defaults, operation by operation, so that its results are the server's bit for
// bit. Weight decay, clipping and AMSGrad are left out.
type adam struct {
	p, m, v []float32
	step    int
}

func newAdam(p []float32) *adam {
	return &adam{p: p, m: make([]float32, len(p)), v: make([]float32, len(p))}
}

const (
	learningRate = 1e-3
	beta1        = 0.9
	beta2        = 0.999
	eps          = 1e-8
	minNormal    = 0x1p-126
)

func (a *adam) update(gradient []float32) {
	// In double from the unrounded hyperparameters, which are variables here: Go's constants are exact, and 1 - 0.9 of
	// two constants is not what it is of two doubles.
	var lr, b1, b2 float64 = learningRate, beta1, beta2
	a.step++
	stepSize := flush(float32(lr / (1 - power(b1, a.step))))
	invSqrtBC2 := float32(1 / math.Sqrt(1-power(b2, a.step)))
	omb1, omb2 := float32(1-b1), float32(1-b2)
	gMin := max(float32(math.Sqrt(0x1p-125/(1-b2))), minNormal)
	for i, g := range gradient {
		if abs(g) < gMin {
			g = 0
		}
		a.m[i] = flush(fma(float32(b1), a.m[i], omb1*g))
		a.v[i] = flush(fma(float32(b2), a.v[i], omb2*float32(g*g)))
		d := fma(float32(math.Sqrt(float64(a.v[i]))), invSqrtBC2, eps)
		a.p[i] = fma(-stepSize, a.m[i]/d, a.p[i])
	}
}

// power squares repeatedly: math.Pow of two machines may differ in the last bit.
func power(base float64, exponent int) float64 {
	result := 1.0
	for ; exponent > 0; exponent /= 2 {
		if exponent%2 == 1 {
			result *= base
		}
		base *= base
	}
	return result
}

func flush(x float32) float32 {
	if abs(x) < minNormal {
		return 0
	}
	return x
}

func abs(x float32) float32 { return float32(math.Abs(float64(x))) }

// fma is x*y + z with one rounding, which math has for float64 alone. The product of two floats is exact in double.
// Their sum is rounded to odd, which keeps enough of what is cut off for the second rounding to be right.
func fma(x, y, z float32) float32 {
	p, c := float64(x)*float64(y), float64(z)
	sum := p + c
	rest := sum - p
	if lost := (p - (sum - rest)) + (c - rest); lost != 0 {
		if bits := math.Float64bits(sum); bits%2 == 0 {
			if (lost > 0) == (sum > 0) {
				bits++
			} else {
				bits--
			}
			sum = math.Float64frombits(bits)
		}
	}
	return float32(sum)
}
