package adamant.example.conformance;

import adamant.example.AdamantClient;
import adamant.example.StepStream;
import adamant.example.Tensors;
import adamant.v1.Dtype;
import adamant.v1.ErrorDetail;
import adamant.v1.ErrorReason;
import adamant.v1.GetStepResultRequest;
import adamant.v1.GetStepResultResponse;
import adamant.v1.Initialization;
import adamant.v1.StepHeader;
import adamant.v1.StepResult;
import adamant.v1.StepState;
import adamant.v1.TensorChunk;
import adamant.v1.TensorSpec;
import com.google.protobuf.ByteString;
import com.google.protobuf.DescriptorProtos.FileDescriptorProto;
import com.google.protobuf.DescriptorProtos.MethodDescriptorProto;
import com.google.protobuf.DescriptorProtos.ServiceDescriptorProto;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.health.v1.HealthCheckRequest;
import io.grpc.health.v1.HealthCheckResponse.ServingStatus;
import io.grpc.health.v1.HealthGrpc;
import io.grpc.reflection.v1.ServerReflectionGrpc;
import io.grpc.reflection.v1.ServerReflectionRequest;
import io.grpc.reflection.v1.ServiceResponse;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;

/**
 * Checks one promise of a server, as seen from Java, and exits with 1 if it is broken. tests/interop/conformance runs it.
 *
 * <pre>Conformance chunks|replay|error|health|reflection|bf16 HOST:PORT</pre>
 */
public final class Conformance {
  private static final String SERVICE = "adamant.v1.OptimizerService";
  private static final Duration TIMEOUT = Duration.ofMinutes(1);

  private interface Check {
    void run(AdamantClient client) throws Exception;
  }

  private static final Map<String, Check> CASES =
      Map.of(
          "chunks", Conformance::checkChunks,
          "replay", Conformance::checkReplay,
          "error", Conformance::checkError,
          "health", Conformance::checkHealth,
          "reflection", Conformance::checkReflection,
          "bf16", Conformance::checkBf16);

  private Conformance() {}

  public static void main(String[] arguments) throws Exception {
    if (arguments.length != 2 || !CASES.containsKey(arguments[0])) {
      System.err.println("usage: Conformance chunks|replay|error|health|reflection|bf16 HOST:PORT");
      System.exit(2);
    }
    try (var client = new AdamantClient(arguments[1])) {
      CASES.get(arguments[0]).run(client);
    }
  }

  private static void expect(String what, Object expected, Object got) {
    if (!Objects.equals(expected, got)) {
      throw new IllegalStateException(what + ": expected " + expected + ", got " + got);
    }
  }

  private static void expectSameBits(String what, float[] expected, float[] got) {
    for (int i = 0; i < expected.length; ++i) {
      if (Float.floatToRawIntBits(expected[i]) != Float.floatToRawIntBits(got[i])) {
        throw new IllegalStateException(what + ": element " + i + ": expected " + expected[i] + ", got " + got[i]);
      }
    }
  }

  /**
   * In [-1, 1), as every language here makes them: seed 0 are parameters, 1 and on gradients. Every 16th is so small that
   * Adam takes some of them for zero.
   */
  private static float[] pseudoRandom(int count, int seed) {
    var values = new float[count];
    for (int i = 0; i < count; ++i) {
      // What overflows wraps, as it does where integers have no sign.
      values[i] = ((i * (int) 2654435761L + seed * (int) 2246822519L) >>> 8) * 0x1p-23f - 1;
      if (i % 16 == 0) {
        values[i] *= 0x1p-57f;
      }
    }
    return values;
  }

  private static AdamantClient.TemporarySet oneTensor(
      AdamantClient client, List<Long> shape, Initialization initialization) throws StatusException {
    var tensor = TensorSpec.newBuilder().setName("x").addAllShape(shape).build();
    return client.createSet("conformance/java", List.of(tensor), initialization);
  }

  private static StepHeader.Builder header(String name, int step) {
    return StepHeader.newBuilder().setSet(name).setRequestId("step " + step).setExpectedStep(step);
  }

  /** A tensor of several messages, each way, with gRPC's default limits. */
  private static void checkChunks(AdamantClient client) throws Exception {
    int elements = 3_000_000;
    try (var set = oneTensor(client, List.of(elements / 3L, 3L), Initialization.INITIALIZATION_WRITTEN)) {
      var local = new LocalAdam(pseudoRandom(elements, 0));
      client.writeParameters(set.name(), new float[][] {local.p});
      float[][] parameters = {new float[elements]};
      try (StepStream steps = client.openSteps()) {
        for (int step = 0; step < 3; ++step) {
          float[] gradient = pseudoRandom(elements, step + 1);
          steps.step(header(set.name(), step).build(), Tensors.toChunks(gradient), parameters);
          local.update(gradient);
          expectSameBits("the reply of step " + (step + 1), local.p, parameters[0]);
        }
        steps.finish();
      }
      float[][] read = {new float[elements]};
      expect("the step of a read", 3L, client.readParameters(set.name(), read).getStep());
      expectSameBits("a read", local.p, read[0]);
    }
  }

  /** A step that is sent again is answered, not applied again. */
  private static void checkReplay(AdamantClient client) throws Exception {
    float[] gradient = {0.5f, -0.25f};
    var local = new LocalAdam(new float[2]);
    local.update(gradient);
    try (var set = oneTensor(client, List.of(2L), Initialization.INITIALIZATION_ZEROS)) {
      var results = new ArrayList<StepResult>();
      for (int i = 0; i < 2; ++i) {
        float[][] parameters = {new float[2]};
        try (StepStream steps = client.openSteps()) {
          results.add(steps.step(header(set.name(), 0).build(), Tensors.toChunks(gradient), parameters));
          steps.finish();
        }
        expectSameBits("the reply", local.p, parameters[0]);
      }
      expect("replayed, the first time", false, results.get(0).getReplayed());
      expect("the second result", results.get(0).toBuilder().setReplayed(true).build(), results.get(1));
      var question = GetStepResultRequest.newBuilder().setSet(set.name()).setRequestId("step 0").build();
      GetStepResultResponse asked = client.stub().getStepResult(question);
      expect("what became of the step", StepState.STEP_STATE_COMMITTED, asked.getState());
      expect("the set's step", 1L, asked.getStep());
    }
  }

  /** An error says in a form for programs what was wrong and where. */
  private static void checkError(AdamantClient client) throws Exception {
    try (var set = oneTensor(client, List.of(4L), Initialization.INITIALIZATION_ZEROS);
        StepStream steps = client.openSteps()) {
      var gap = TensorChunk.newBuilder().setTensor(0).setOffset(1).addAllValues(List.of(1f, 1f, 1f)).build();
      StatusException error;
      try {
        StepResult result = steps.step(header(set.name(), 0).build(), List.of(gap), new float[1][4]);
        throw new IllegalStateException("a gap: expected an error, got " + result);
      } catch (StatusException caught) {
        error = caught;
      }
      expect("the code", Status.Code.INVALID_ARGUMENT, error.getStatus().getCode());
      ErrorDetail got = AdamantClient.errorDetail(error).orElseThrow();
      // What is zero is there, and not absent. Whether the detail says where the set stands is not looked at.
      var expected =
          ErrorDetail.newBuilder()
              .setReason(ErrorReason.ERROR_REASON_CHUNK_OUT_OF_ORDER)
              .setSet(set.name())
              .setTensor(0)
              .setOffset(1)
              .setExpectedOffset(0)
              .setField("chunks[0].offset")
              .build();
      expect("the detail", expected, got.toBuilder().clearIncarnation().clearStep().build());
    }
  }

  private static void checkHealth(AdamantClient client) throws Exception {
    var health = HealthGrpc.newBlockingV2Stub(client.channel()).withDeadlineAfter(TIMEOUT);
    for (String service : List.of("", SERVICE)) {
      var request = HealthCheckRequest.newBuilder().setService(service).build();
      expect("the health of '" + service + "'", ServingStatus.SERVING, health.check(request).getStatus());
    }
    try {
      health.check(HealthCheckRequest.newBuilder().setService("nobody").build());
      throw new IllegalStateException("the health of nobody: expected NOT_FOUND, got OK");
    } catch (StatusException error) {
      expect("the health of nobody", Status.Code.NOT_FOUND, error.getStatus().getCode());
    }
  }

  private static void checkReflection(AdamantClient client) throws Exception {
    var call = ServerReflectionGrpc.newBlockingV2Stub(client.channel()).withDeadlineAfter(TIMEOUT).serverReflectionInfo();
    call.write(ServerReflectionRequest.newBuilder().setListServices("").build());
    List<ServiceResponse> services = call.read().getListServicesResponse().getServiceList();
    expect("a service " + SERVICE, true, services.stream().anyMatch(service -> service.getName().equals(SERVICE)));
    call.write(ServerReflectionRequest.newBuilder().setFileContainingSymbol(SERVICE).build());
    List<MethodDescriptorProto> methods = new ArrayList<>();
    for (ByteString file : call.read().getFileDescriptorResponse().getFileDescriptorProtoList()) {
      for (ServiceDescriptorProto service : FileDescriptorProto.parseFrom(file).getServiceList()) {
        methods.addAll(service.getMethodList());
      }
    }
    call.halfClose();
    expect("the end", null, call.read());
    MethodDescriptorProto step =
        methods.stream().filter(method -> method.getName().equals("Step")).findFirst().orElseThrow();
    expect("Step streams both ways", true, step.getClientStreaming() && step.getServerStreaming());
  }

  /** Gradients in 16 bits are widened exactly, and a reply in 16 bits is rounded to the nearest. */
  private static void checkBf16(AdamantClient client) throws Exception {
    int elements = 4096;
    try (var set = oneTensor(client, List.of((long) elements), Initialization.INITIALIZATION_ZEROS);
        StepStream steps = client.openSteps()) {
      var local = new LocalAdam(new float[elements]);
      Dtype[] replies = {Dtype.DTYPE_FLOAT32, Dtype.DTYPE_BFLOAT16};
      for (int step = 0; step < replies.length; ++step) {
        float[] gradient = pseudoRandom(elements, step + 1);
        ByteBuffer data = ByteBuffer.allocate(elements * Short.BYTES).order(ByteOrder.LITTLE_ENDIAN);
        for (int i = 0; i < elements; ++i) {
          // The upper half of a float is the bf16 below it.
          int bits = Float.floatToRawIntBits(gradient[i]) & 0xffff0000;
          data.putShort((short) (bits >>> 16));
          gradient[i] = Float.intBitsToFloat(bits);
        }
        var chunk =
            TensorChunk.newBuilder().setDtype(Dtype.DTYPE_BFLOAT16).setData(ByteString.copyFrom(data.flip())).build();
        float[][] parameters = {new float[elements]};
        steps.step(
            header(set.name(), step).setReplyDtype(replies[step]).build(), List.of(chunk), parameters);
        local.update(gradient);
        float[] expected = local.p.clone();
        if (replies[step] == Dtype.DTYPE_BFLOAT16) {
          for (int i = 0; i < elements; ++i) {
            int bits = Float.floatToRawIntBits(expected[i]);
            expected[i] = Float.intBitsToFloat((bits + 0x7fff + (bits >>> 16 & 1)) & 0xffff0000);
          }
        }
        expectSameBits("the reply in " + replies[step], expected, parameters[0]);
      }
      steps.finish();
    }
  }
}
