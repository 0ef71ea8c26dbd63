// Sanity trains a small network whose optimizer lives on a server, and checks that the losses are those of the
// reference, digit by digit.
//
//	sanity localhost:50051
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	adamantv1 "adamant.example/client/gen/adamant/v1"
	"adamant.example/client/internal/adamant"
)

const epochs = 50

// PyTorch's, of epochs 5, 10, ..., 50, each before its update.
var referenceLosses = strings.Fields(
	"0.809774 0.721449 0.638959 0.562460 0.491979 0.428558 0.372196 0.320848 0.274360 0.232563")

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: sanity HOST:PORT")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "sanity:", err)
		os.Exit(1)
	}
}

func run(target string) error {
	client, err := adamant.NewClient(target)
	if err != nil {
		return err
	}
	defer client.Conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	losses, err := train(ctx, client)
	if err != nil {
		return err
	}
	if !slices.Equal(losses, referenceLosses) {
		return fmt.Errorf("expected the losses %v, got %v", referenceLosses, losses)
	}
	fmt.Println("The losses match the reference.")
	return nil
}

// train returns the loss of every fifth epoch.
func train(ctx context.Context, client *adamant.Client) (losses []string, err error) {
	name, err := client.Create(ctx, "examples/go", adamantv1.Initialization_INITIALIZATION_WRITTEN, tensorSpecs()...)
	if err != nil {
		return nil, err
	}
	defer func() {
		if deleteErr := client.Delete(name); err == nil {
			err = deleteErr
		}
	}()

	parameters, gradient := newNetwork(), newNetwork()
	parameters.initialize()
	incarnation, err := client.Write(ctx, name, parameters)
	if err != nil {
		return nil, err
	}
	steps, err := client.OpenSteps(ctx)
	if err != nil {
		return nil, err
	}
	for epoch := 1; epoch <= epochs; epoch++ {
		loss := parameters.lossAndGradient([inputs]float32{1, 2}, 1, gradient)
		if epoch%5 == 0 {
			fmt.Printf("Epoch %02d: loss = %.6f\n", epoch, loss)
			losses = append(losses, fmt.Sprintf("%.6f", loss))
		}
		// Exactly once: this step, from this state, whatever becomes of the connection.
		header := &adamantv1.StepHeader{
			Set:          name,
			Incarnation:  proto.Uint64(incarnation),
			RequestId:    rand.Text(),
			ExpectedStep: proto.Int64(int64(epoch - 1)),
		}
		result, err := steps.Step(header, adamant.Chunks(gradient), parameters)
		if err != nil {
			return nil, err
		}
		if result.Outcome != adamantv1.StepOutcome_STEP_OUTCOME_APPLIED {
			return nil, fmt.Errorf("epoch %d: %v", epoch, result.Outcome)
		}
	}
	return losses, steps.Close()
}
