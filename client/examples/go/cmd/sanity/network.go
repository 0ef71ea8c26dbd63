package main

import (
	"math"

	"gonum.org/v1/gonum/mathext/prng"

	adamantv1 "adamant.example/client/gen/adamant/v1"
)

const (
	inputs = 2
	hidden = 16
)

// network is Linear(2, 16), ReLU, Linear(16, 1): for each layer its weights (outputs x inputs, row-major) and biases.
// It is also the form of the network's gradient.
type network [][]float32

func newNetwork() network {
	return network{make([]float32, hidden*inputs), make([]float32, hidden), make([]float32, hidden), make([]float32, 1)}
}

func tensorSpecs() []*adamantv1.TensorSpec {
	return []*adamantv1.TensorSpec{
		{Name: "layers.0.weight", Shape: []int64{hidden, inputs}},
		{Name: "layers.0.bias", Shape: []int64{hidden}},
		{Name: "layers.1.weight", Shape: []int64{1, hidden}},
		{Name: "layers.1.bias", Shape: []int64{1}},
	}
}

// initialize draws the parameters that PyTorch draws after manual_seed(0).
func (n network) initialize() {
	random := prng.NewMT19937()
	random.Seed(0)
	for i, fanIn := range []float64{inputs, inputs, hidden, hidden} {
		k := float32(1 / math.Sqrt(fanIn))
		for j := range n[i] {
			u := float32(random.Uint32()&0xffffff) * 0x1p-24
			n[i][j] = float32(u*(k+k)) - k
		}
	}
}

// lossAndGradient returns (output - y)^2 and sets gradient to its derivative by each parameter.
//
// Go may fuse x*y + z into one operation with one rounding, and does on arm64: the losses would differ in their last
// digits. The explicit conversions forbid it.
func (n network) lossAndGradient(x [inputs]float32, y float32, gradient network) float32 {
	w1, b1, w2, b2 := n[0], n[1], n[2], n[3]
	var h [hidden]float32
	output := b2[0]
	for i := range h {
		z := b1[i]
		for j := range x {
			z += float32(w1[i*inputs+j] * x[j])
		}
		h[i] = max(z, 0)
		output += float32(w2[i] * h[i])
	}

	err := output - y
	dOutput := 2 * err
	gradient[3][0] = dOutput
	for i := range h {
		gradient[2][i] = dOutput * h[i]
		var dz float32
		if h[i] > 0 {
			dz = dOutput * w2[i]
		}
		gradient[1][i] = dz
		for j := range x {
			gradient[0][i*inputs+j] = dz * x[j]
		}
	}
	return err * err
}
