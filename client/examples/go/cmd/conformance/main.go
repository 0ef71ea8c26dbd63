// Conformance checks one promise of a server, as seen from Go, and exits with 1 if it is broken. tests/interop/conformance
// runs it.
//
//	conformance chunks|replay|error|health|reflection|bf16 HOST:PORT
package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	adamantv1 "adamant.example/client/gen/adamant/v1"
	"adamant.example/client/internal/adamant"
)

const service = "adamant.v1.OptimizerService"

var cases = map[string]func(context.Context, *adamant.Client) error{
	"chunks":     chunks,
	"replay":     replay,
	"error":      errorDetail,
	"health":     health,
	"reflection": reflection,
	"bf16":       bf16,
}

func main() {
	if len(os.Args) != 3 || cases[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: conformance chunks|replay|error|health|reflection|bf16 HOST:PORT")
		os.Exit(2)
	}
	if err := run(cases[os.Args[1]], os.Args[2]); err != nil {
		fmt.Fprintf(os.Stderr, "conformance %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

func run(check func(context.Context, *adamant.Client) error, target string) error {
	client, err := adamant.NewClient(target)
	if err != nil {
		return err
	}
	defer client.Conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return check(ctx, client)
}

// withSet runs use with a new set of these tensors, all zeros, or, with WRITTEN, awaiting a write.
func withSet(ctx context.Context, client *adamant.Client, init adamantv1.Initialization, shape []int64,
	use func(name string) error) error {
	name, err := client.Create(ctx, "conformance/go", init, &adamantv1.TensorSpec{Name: "x", Shape: shape})
	if err != nil {
		return err
	}
	err = use(name)
	if deleteErr := client.Delete(name); err == nil {
		err = deleteErr
	}
	return err
}

// pseudoRandom returns values in [-1, 1) that every language here makes alike: seed 0 are parameters, 1 and on gradients.
// Every 16th is so small that Adam takes some of them for zero.
func pseudoRandom(count int, seed uint32) []float32 {
	values := make([]float32, count)
	for i := range values {
		values[i] = float32((uint32(i)*2654435761+seed*2246822519)>>8)*0x1p-23 - 1
		if i%16 == 0 {
			values[i] *= 0x1p-57
		}
	}
	return values
}

// sameBits returns an error that names the first element that differs.
func sameBits(what string, expected, got []float32) error {
	for i := range expected {
		if math.Float32bits(expected[i]) != math.Float32bits(got[i]) {
			return fmt.Errorf("%s: element %d: expected %v, got %v", what, i, expected[i], got[i])
		}
	}
	return nil
}

func header(name string, step int) *adamantv1.StepHeader {
	return &adamantv1.StepHeader{
		Set: name, RequestId: fmt.Sprint("step ", step), ExpectedStep: proto.Int64(int64(step))}
}

// A tensor of several messages, each way, with gRPC's default limits.
func chunks(ctx context.Context, client *adamant.Client) error {
	const elements = 3_000_000
	return withSet(ctx, client, adamantv1.Initialization_INITIALIZATION_WRITTEN, []int64{elements / 3, 3},
		func(name string) error {
			local := newAdam(pseudoRandom(elements, 0))
			if _, err := client.Write(ctx, name, [][]float32{local.p}); err != nil {
				return err
			}
			steps, err := client.OpenSteps(ctx)
			if err != nil {
				return err
			}
			parameters := [][]float32{make([]float32, elements)}
			for step := range 3 {
				gradient := pseudoRandom(elements, uint32(step+1))
				if _, err := steps.Step(header(name, step), adamant.Chunks([][]float32{gradient}), parameters); err != nil {
					return err
				}
				local.update(gradient)
				if err := sameBits(fmt.Sprint("the reply of step ", step+1), local.p, parameters[0]); err != nil {
					return err
				}
			}
			if err := steps.Close(); err != nil {
				return err
			}
			clear(parameters[0])
			read, err := client.Read(ctx, name, parameters)
			if err != nil {
				return err
			}
			if read.GetStep() != 3 {
				return fmt.Errorf("a read: expected step 3, got %d", read.GetStep())
			}
			return sameBits("a read", local.p, parameters[0])
		})
}

// A step that is sent again is answered, not applied again.
func replay(ctx context.Context, client *adamant.Client) error {
	return withSet(ctx, client, adamantv1.Initialization_INITIALIZATION_ZEROS, []int64{2}, func(name string) error {
		var results [2]*adamantv1.StepResult
		var parameters [2][]float32
		for i := range 2 {
			steps, err := client.OpenSteps(ctx)
			if err != nil {
				return err
			}
			parameters[i] = make([]float32, 2)
			gradient := adamant.Chunks([][]float32{{0.5, -0.25}})
			if results[i], err = steps.Step(header(name, 0), gradient, [][]float32{parameters[i]}); err != nil {
				return err
			}
			if err := steps.Close(); err != nil {
				return err
			}
		}
		if results[0].Replayed || !results[1].Replayed {
			return fmt.Errorf("expected the second answer alone to be replayed, got %v and %v", results[0], results[1])
		}
		results[1].Replayed = false
		if !proto.Equal(results[0], results[1]) {
			return fmt.Errorf("expected the same result twice, got %v and %v", results[0], results[1])
		}
		asked, err := client.GetStepResult(ctx, &adamantv1.GetStepResultRequest{Set: name, RequestId: "step 0"})
		if err != nil {
			return err
		}
		if asked.State != adamantv1.StepState_STEP_STATE_COMMITTED || asked.Step != 1 {
			return fmt.Errorf("expected COMMITTED at step 1, got %v", asked)
		}
		local := newAdam(make([]float32, 2))
		local.update([]float32{0.5, -0.25})
		if err := sameBits("the first reply", local.p, parameters[0]); err != nil {
			return err
		}
		return sameBits("the second reply", local.p, parameters[1])
	})
}

// An error says in a form for programs what was wrong and where.
func errorDetail(ctx context.Context, client *adamant.Client) error {
	return withSet(ctx, client, adamantv1.Initialization_INITIALIZATION_ZEROS, []int64{4}, func(name string) error {
		steps, err := client.OpenSteps(ctx)
		if err != nil {
			return err
		}
		gap := []*adamantv1.TensorChunk{{Tensor: 0, Offset: 1, Values: []float32{1, 1, 1}}}
		_, err = steps.Step(header(name, 0), gap, [][]float32{make([]float32, 4)})
		if status.Code(err) != codes.InvalidArgument {
			return fmt.Errorf("a gap: expected INVALID_ARGUMENT, got %v", err)
		}
		got := adamant.ErrorDetail(err)
		if got == nil {
			return fmt.Errorf("a gap: no ErrorDetail in %v", err)
		}
		// What is zero is there, and not absent. Whether the detail says where the set stands is not looked at.
		got.Incarnation, got.Step = nil, nil
		expected := &adamantv1.ErrorDetail{
			Reason: adamantv1.ErrorReason_ERROR_REASON_CHUNK_OUT_OF_ORDER, Set: name, Tensor: proto.Int32(0),
			Offset: proto.Int64(1), ExpectedOffset: proto.Int64(0), Field: "chunks[0].offset"}
		if !proto.Equal(expected, got) {
			return fmt.Errorf("a gap: expected %v, got %v", expected, got)
		}
		return nil
	})
}

func health(ctx context.Context, client *adamant.Client) error {
	stub := healthv1.NewHealthClient(client.Conn)
	for _, name := range []string{"", service} {
		response, err := stub.Check(ctx, &healthv1.HealthCheckRequest{Service: name})
		if err != nil {
			return err
		}
		if response.Status != healthv1.HealthCheckResponse_SERVING {
			return fmt.Errorf("service %q: expected SERVING, got %v", name, response.Status)
		}
	}
	if _, err := stub.Check(ctx, &healthv1.HealthCheckRequest{Service: "nobody"}); status.Code(err) != codes.NotFound {
		return fmt.Errorf("a service that there is not: expected NOT_FOUND, got %v", err)
	}
	return nil
}

func reflection(ctx context.Context, client *adamant.Client) error {
	stream, err := reflectionv1.NewServerReflectionClient(client.Conn).ServerReflectionInfo(ctx)
	if err != nil {
		return err
	}
	ask := func(request *reflectionv1.ServerReflectionRequest) (*reflectionv1.ServerReflectionResponse, error) {
		if err := stream.Send(request); err != nil {
			return nil, err
		}
		return stream.Recv()
	}
	services, err := ask(&reflectionv1.ServerReflectionRequest{
		MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}})
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(services.GetListServicesResponse().GetService(),
		func(s *reflectionv1.ServiceResponse) bool { return s.Name == service }) {
		return fmt.Errorf("expected %s among the services, got %v", service, services)
	}
	files, err := ask(&reflectionv1.ServerReflectionRequest{
		MessageRequest: &reflectionv1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: service}})
	if err != nil {
		return err
	}
	for _, file := range files.GetFileDescriptorResponse().GetFileDescriptorProto() {
		descriptor := &descriptorpb.FileDescriptorProto{}
		if err := proto.Unmarshal(file, descriptor); err != nil {
			return err
		}
		for _, s := range descriptor.Service {
			for _, method := range s.Method {
				if method.GetName() == "Step" && method.GetClientStreaming() && method.GetServerStreaming() {
					return stream.CloseSend()
				}
			}
		}
	}
	return fmt.Errorf("expected the method Step, streaming both ways, in the file of %s, got %v", service, files)
}

// Gradients in 16 bits are widened exactly, and a reply in 16 bits is rounded to the nearest.
func bf16(ctx context.Context, client *adamant.Client) error {
	const elements = 4096
	return withSet(ctx, client, adamantv1.Initialization_INITIALIZATION_ZEROS, []int64{elements},
		func(name string) error {
			local := newAdam(make([]float32, elements))
			steps, err := client.OpenSteps(ctx)
			if err != nil {
				return err
			}
			for step, reply := range []adamantv1.Dtype{adamantv1.Dtype_DTYPE_FLOAT32, adamantv1.Dtype_DTYPE_BFLOAT16} {
				gradient := pseudoRandom(elements, uint32(step+1))
				data := make([]byte, 0, 2*elements)
				for i := range gradient {
					// The upper half of a float is the bf16 below it.
					bits := math.Float32bits(gradient[i]) >> 16
					data = binary.LittleEndian.AppendUint16(data, uint16(bits))
					gradient[i] = math.Float32frombits(bits << 16)
				}
				request := header(name, step)
				request.ReplyDtype = reply
				parameters := make([]float32, elements)
				chunk := &adamantv1.TensorChunk{Dtype: adamantv1.Dtype_DTYPE_BFLOAT16, Data: data}
				if _, err := steps.Step(request, []*adamantv1.TensorChunk{chunk}, [][]float32{parameters}); err != nil {
					return err
				}
				local.update(gradient)
				expected := slices.Clone(local.p)
				if reply == adamantv1.Dtype_DTYPE_BFLOAT16 {
					for i, p := range expected {
						bits := math.Float32bits(p)
						expected[i] = math.Float32frombits((bits + 0x7fff + bits>>16&1) &^ 0xffff)
					}
				}
				if err := sameBits(fmt.Sprint("the reply in ", reply), expected, parameters); err != nil {
					return err
				}
			}
			return steps.Close()
		})
}
