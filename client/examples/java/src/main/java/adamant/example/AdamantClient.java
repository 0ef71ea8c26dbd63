package adamant.example;

import adamant.v1.CreateParameterSetRequest;
import adamant.v1.DeleteParameterSetRequest;
import adamant.v1.ErrorDetail;
import adamant.v1.Initialization;
import adamant.v1.OptimizerServiceGrpc;
import adamant.v1.OptimizerServiceGrpc.OptimizerServiceBlockingV2Stub;
import adamant.v1.ParameterSetSpec;
import adamant.v1.ReadHeader;
import adamant.v1.ReadTensorsRequest;
import adamant.v1.ReadTensorsResponse;
import adamant.v1.TensorChunk;
import adamant.v1.TensorSpec;
import adamant.v1.WriteHeader;
import adamant.v1.WriteMode;
import adamant.v1.WriteTensorsRequest;
import adamant.v1.WriteTensorsResponse;
import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.StatusException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.BlockingClientCall;
import java.time.Duration;
import java.util.List;
import java.util.Optional;
import java.util.UUID;

/**
 * The little that a Java program wants on top of the generated stubs: tensors as arrays, and steps in lock-step. Safe for
 * use by several threads.
 */
public final class AdamantClient implements AutoCloseable {
  /** Of any one call but a stream of steps. A call that finds no place on the server waits for one. */
  private static final Duration TIMEOUT = Duration.ofMinutes(1);

  private final ManagedChannel channel;

  /** A client of the server at {@code target}, such as {@code localhost:50051}. It connects with the first call. */
  public AdamantClient(String target) {
    channel = Grpc.newChannelBuilder(target, InsecureChannelCredentials.create()).build();
  }

  @Override
  public void close() {
    channel.shutdownNow();
  }

  public ManagedChannel channel() {
    return channel;
  }

  /** The calls themselves, each with a deadline. */
  public OptimizerServiceBlockingV2Stub stub() {
    return OptimizerServiceGrpc.newBlockingV2Stub(channel).withDeadlineAfter(TIMEOUT);
  }

  /** A set with a name of its own, trained by Adam with its defaults. Closing deletes it. */
  public final class TemporarySet implements AutoCloseable {
    private final String name;

    private TemporarySet(String name) {
      this.name = name;
    }

    public String name() {
      return name;
    }

    @Override
    public void close() throws StatusException {
      stub().deleteParameterSet(DeleteParameterSetRequest.newBuilder().setName(name).build());
    }
  }

  /** Makes a set whose name starts with {@code prefix}. */
  public TemporarySet createSet(String prefix, List<TensorSpec> tensors, Initialization initialization)
      throws StatusException {
    String name = prefix + "/" + UUID.randomUUID();
    var spec =
        ParameterSetSpec.newBuilder().setName(name).addAllTensors(tensors).setInitialization(initialization).build();
    stub().createParameterSet(CreateParameterSetRequest.newBuilder().setSpec(spec).build());
    return new TemporarySet(name);
  }

  /** Replaces the parameters of every tensor of the set. Returns the incarnation that this makes. */
  public long writeParameters(String set, float[][] parameters) throws StatusException, InterruptedException {
    BlockingClientCall<WriteTensorsRequest, WriteTensorsResponse> call = stub().writeTensors();
    var header = WriteHeader.newBuilder().setSet(set).setMode(WriteMode.WRITE_MODE_PARAMETERS);
    call.write(WriteTensorsRequest.newBuilder().setHeader(header).build());
    for (TensorChunk chunk : Tensors.toChunks(parameters)) {
      call.write(WriteTensorsRequest.newBuilder().addChunks(chunk).build());
    }
    call.write(WriteTensorsRequest.newBuilder().setLast(true).build());
    call.halfClose();
    WriteTensorsResponse response = call.read();
    if (response == null) {
      throw new IllegalStateException("the write ended without a response");
    }
    return response.getIncarnation();
  }

  /** Fills {@code parameters}, which has the tensors' sizes, with those of one single step. Returns which. */
  public ReadHeader readParameters(String set, float[][] parameters) throws StatusException, InterruptedException {
    BlockingClientCall<?, ReadTensorsResponse> call =
        stub().readTensors(ReadTensorsRequest.newBuilder().setSet(set).build());
    ReadHeader header = ReadHeader.getDefaultInstance();
    for (ReadTensorsResponse response = call.read(); response != null; response = call.read()) {
      if (response.hasHeader()) {
        header = response.getHeader();
      }
      Tensors.copy(response.getChunksList(), parameters);
    }
    return header;
  }

  /** Opens a stream of steps. It has no deadline: a training takes as long as it takes. */
  public StepStream openSteps() {
    return new StepStream(OptimizerServiceGrpc.newBlockingV2Stub(channel).step());
  }

  /** What an error of this service carries beside its code and message. */
  public static Optional<ErrorDetail> errorDetail(StatusException error) throws InvalidProtocolBufferException {
    com.google.rpc.Status status = StatusProto.fromThrowable(error);
    if (status == null) {
      return Optional.empty();
    }
    for (Any detail : status.getDetailsList()) {
      if (detail.is(ErrorDetail.class)) {
        return Optional.of(detail.unpack(ErrorDetail.class));
      }
    }
    return Optional.empty();
  }
}
