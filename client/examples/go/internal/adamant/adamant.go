// Package adamant is the little that a Go program wants on top of the generated stubs: tensors as slices, cut into
// chunks, and a stream of steps in lock-step.
package adamant

//go:generate mkdir -p ../../gen
//go:generate protoc -I ../../../../../proto --go_out=../../gen --go-grpc_out=../../gen adamant/v1/error.proto adamant/v1/parameter_set.proto adamant/v1/step.proto adamant/v1/service.proto

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	adamantv1 "adamant.example/client/gen/adamant/v1"
)

// Elements in a chunk: 1 MiB of fp32. Messages of that size are far below the 4 MiB that grpc-go and the server take.
const chunkElements = 1 << 18

// Client calls one server. It is safe for concurrent use.
type Client struct {
	adamantv1.OptimizerServiceClient
	Conn *grpc.ClientConn
}

// NewClient returns a client of the server at target, such as localhost:50051. It connects with the first call.
func NewClient(target string) (*Client, error) {
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	return &Client{adamantv1.NewOptimizerServiceClient(conn), conn}, nil
}

// Create makes a set with a name of its own that starts with prefix, trained by Adam with its defaults, and returns
// the name.
func (c *Client) Create(ctx context.Context, prefix string, init adamantv1.Initialization,
	tensors ...*adamantv1.TensorSpec) (string, error) {
	name := prefix + "/" + rand.Text()
	_, err := c.CreateParameterSet(ctx, &adamantv1.CreateParameterSetRequest{
		Spec: &adamantv1.ParameterSetSpec{Name: name, Tensors: tensors, Initialization: init},
	})
	return name, err
}

// Delete deletes the set. It takes no context: a set is to go also when the context of its training has ended.
func (c *Client) Delete(name string) error {
	_, err := c.DeleteParameterSet(context.Background(), &adamantv1.DeleteParameterSetRequest{Name: name})
	return err
}

// Write replaces the parameters of every tensor of the set, and returns the incarnation that this makes.
func (c *Client) Write(ctx context.Context, name string, parameters [][]float32) (uint64, error) {
	// Canceling is what frees the stream of a call that is given up in the middle.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.WriteTensors(ctx)
	if err != nil {
		return 0, err
	}
	header := &adamantv1.WriteHeader{Set: name, Mode: adamantv1.WriteMode_WRITE_MODE_PARAMETERS}
	err = stream.Send(&adamantv1.WriteTensorsRequest{Header: header})
	for _, chunk := range Chunks(parameters) {
		if err == nil {
			err = stream.Send(&adamantv1.WriteTensorsRequest{Chunks: []*adamantv1.TensorChunk{chunk}})
		}
	}
	if err == nil {
		err = stream.Send(&adamantv1.WriteTensorsRequest{Last: true})
	}
	// io.EOF from Send says only that the call has ended: why is for the receiver to hear.
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	response, err := stream.CloseAndRecv()
	return response.GetIncarnation(), err
}

// Read fills parameters, which has the tensors' sizes, with those of one single step, and returns which.
func (c *Client) Read(ctx context.Context, name string, parameters [][]float32) (*adamantv1.ReadHeader, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.ReadTensors(ctx, &adamantv1.ReadTensorsRequest{Set: name, AsValues: true})
	if err != nil {
		return nil, err
	}
	var header *adamantv1.ReadHeader
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return header, nil
		}
		if err != nil {
			return nil, err
		}
		if response.Header != nil {
			header = response.Header
		}
		if err := copyChunks(parameters, response.Chunks); err != nil {
			return nil, err
		}
	}
}

// StepStream carries steps, one after the other. It is not safe for concurrent use.
type StepStream struct {
	stream grpc.BidiStreamingClient[adamantv1.StepRequest, adamantv1.StepResponse]
}

// OpenSteps opens a stream of steps, which ends with ctx, with Close, or with the first error.
func (c *Client) OpenSteps(ctx context.Context) (*StepStream, error) {
	stream, err := c.OptimizerServiceClient.Step(ctx)
	return &StepStream{stream}, err
}

// Step sends a gradient and receives the updated parameters. After an error parameters may be of no single step.
func (s *StepStream) Step(header *adamantv1.StepHeader, chunks []*adamantv1.TensorChunk,
	parameters [][]float32) (*adamantv1.StepResult, error) {
	for _, request := range requests(header, chunks) {
		err := s.stream.Send(request)
		if errors.Is(err, io.EOF) {
			break // Recv says why.
		}
		if err != nil {
			return nil, err
		}
	}
	for {
		response, err := s.stream.Recv()
		if err != nil {
			return nil, err
		}
		if err := copyChunks(parameters, response.Chunks); err != nil {
			return nil, err
		}
		if response.Result != nil {
			return response.Result, nil
		}
	}
}

// Close ends the stream, and returns when the server has ended it, too.
func (s *StepStream) Close() error {
	if err := s.stream.CloseSend(); err != nil {
		return err
	}
	if _, err := s.stream.Recv(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("the stream of steps did not end: %w", err)
	}
	return nil
}

// requests returns the messages of one step: one for a small model, and otherwise the header alone, so that the server
// makes room before the gradient moves, and one for each chunk.
func requests(header *adamantv1.StepHeader, chunks []*adamantv1.TensorChunk) []*adamantv1.StepRequest {
	elements := 0
	for _, chunk := range chunks {
		elements += len(chunk.Values) + len(chunk.Data)/2
	}
	if elements <= chunkElements {
		return []*adamantv1.StepRequest{{Header: header, Chunks: chunks, Last: true}}
	}
	requests := []*adamantv1.StepRequest{{Header: header}}
	for _, chunk := range chunks {
		requests = append(requests, &adamantv1.StepRequest{Chunks: []*adamantv1.TensorChunk{chunk}})
	}
	requests[len(requests)-1].Last = true
	return requests
}

// Chunks cuts tensors, in order of their index, into chunks. They share the tensors' memory. Values are the fast form
// in Go: the slice is the field.
func Chunks(tensors [][]float32) []*adamantv1.TensorChunk {
	var chunks []*adamantv1.TensorChunk
	for index, tensor := range tensors {
		for begin := 0; begin < len(tensor); begin += chunkElements {
			end := min(begin+chunkElements, len(tensor))
			chunks = append(chunks, &adamantv1.TensorChunk{
				Tensor: int32(index), Offset: int64(begin), Values: tensor[begin:end]})
		}
	}
	return chunks
}

// copyChunks copies chunks, in whichever form they came, to where they belong.
func copyChunks(tensors [][]float32, chunks []*adamantv1.TensorChunk) error {
	for _, chunk := range chunks {
		if int(chunk.Tensor) >= len(tensors) || chunk.Offset > int64(len(tensors[chunk.Tensor])) {
			return fmt.Errorf("a chunk of tensor %d at %d: there is no such element", chunk.Tensor, chunk.Offset)
		}
		values, err := elements(chunk)
		if err != nil {
			return err
		}
		if n := copy(tensors[chunk.Tensor][chunk.Offset:], values); n != len(values) {
			return fmt.Errorf("a chunk of tensor %d at %d has %d elements: expected at most %d", chunk.Tensor,
				chunk.Offset, len(values), n)
		}
	}
	return nil
}

func elements(chunk *adamantv1.TensorChunk) ([]float32, error) {
	if len(chunk.Data) == 0 {
		return chunk.Values, nil
	}
	switch chunk.Dtype {
	case adamantv1.Dtype_DTYPE_UNSPECIFIED, adamantv1.Dtype_DTYPE_FLOAT32:
		values := make([]float32, len(chunk.Data)/4)
		_, err := binary.Decode(chunk.Data, binary.LittleEndian, values)
		return values, err
	case adamantv1.Dtype_DTYPE_BFLOAT16:
		values := make([]float32, len(chunk.Data)/2)
		for i := range values {
			values[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(chunk.Data[2*i:])) << 16)
		}
		return values, nil
	default:
		return nil, fmt.Errorf("a chunk of tensor %d is of %v: expected fp32 or bf16", chunk.Tensor, chunk.Dtype)
	}
}

// ErrorDetail returns what err, of a call of this service, carries beside its code and message: nil if nothing.
func ErrorDetail(err error) *adamantv1.ErrorDetail {
	for _, detail := range status.Convert(err).Details() {
		if detail, ok := detail.(*adamantv1.ErrorDetail); ok {
			return detail
		}
	}
	return nil
}
