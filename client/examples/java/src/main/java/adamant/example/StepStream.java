package adamant.example;

import adamant.v1.StepHeader;
import adamant.v1.StepRequest;
import adamant.v1.StepResponse;
import adamant.v1.StepResult;
import adamant.v1.TensorChunk;
import io.grpc.StatusException;
import io.grpc.stub.BlockingClientCall;
import java.util.List;

/**
 * Carries steps, one after the other, each answered before the next is sent. For one thread at a time. Closing ends the
 * call, whatever it is at.
 */
public final class StepStream implements AutoCloseable {
  private final BlockingClientCall<StepRequest, StepResponse> call;
  private boolean ended;

  StepStream(BlockingClientCall<StepRequest, StepResponse> call) {
    this.call = call;
  }

  /**
   * Sends a gradient, and puts the updated parameters into {@code parameters}. After an error the stream has ended, and
   * they may be of no single step.
   */
  public StepResult step(StepHeader header, List<TensorChunk> chunks, float[][] parameters)
      throws StatusException, InterruptedException {
    int bytes = chunks.stream().mapToInt(chunk -> chunk.getData().size()).sum();
    if (bytes <= Tensors.CHUNK_ELEMENTS * Float.BYTES) {
      call.write(StepRequest.newBuilder().setHeader(header).addAllChunks(chunks).setLast(true).build());
    } else {
      // The header alone: the server makes room before the gradient moves.
      call.write(StepRequest.newBuilder().setHeader(header).build());
      for (TensorChunk chunk : chunks) {
        call.write(StepRequest.newBuilder().addChunks(chunk).build());
      }
      call.write(StepRequest.newBuilder().setLast(true).build());
    }
    for (StepResponse response = call.read(); response != null; response = call.read()) {
      Tensors.copy(response.getChunksList(), parameters);
      if (response.hasResult()) {
        return response.getResult();
      }
    }
    throw new IllegalStateException("the server ended the stream without a result");
  }

  /** Ends the stream, and returns when the server has ended it, too. */
  public void finish() throws StatusException, InterruptedException {
    call.halfClose();
    if (call.read() != null) {
      throw new IllegalStateException("the server sent what nobody had asked for");
    }
    ended = true;
  }

  @Override
  public void close() {
    if (!ended) {
      call.cancel("closed", null);
    }
  }
}
