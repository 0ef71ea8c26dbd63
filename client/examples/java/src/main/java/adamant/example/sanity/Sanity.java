package adamant.example.sanity;

import adamant.example.AdamantClient;
import adamant.example.StepStream;
import adamant.example.Tensors;
import adamant.v1.Initialization;
import adamant.v1.StepHeader;
import adamant.v1.StepOutcome;
import adamant.v1.StepResult;
import io.grpc.StatusException;
import java.math.BigDecimal;
import java.math.RoundingMode;
import java.util.ArrayList;
import java.util.List;
import java.util.UUID;

/**
 * Trains a small network whose optimizer lives on a server, and checks that the losses are those of the reference.
 *
 * <pre>Sanity localhost:50051</pre>
 */
public final class Sanity {
  private static final int EPOCHS = 50;

  /** PyTorch's, of epochs 5, 10, ..., 50, each before its update. */
  private static final List<String> REFERENCE_LOSSES =
      List.of(
          "0.809774", "0.721449", "0.638959", "0.562460", "0.491979",
          "0.428558", "0.372196", "0.320848", "0.274360", "0.232563");

  private Sanity() {}

  public static void main(String[] arguments) throws StatusException, InterruptedException {
    if (arguments.length != 1) {
      System.err.println("usage: Sanity HOST:PORT");
      System.exit(2);
    }
    List<String> losses;
    try (var client = new AdamantClient(arguments[0])) {
      losses = train(client);
    }
    if (!losses.equals(REFERENCE_LOSSES)) {
      System.err.println("expected the losses " + REFERENCE_LOSSES + ", got " + losses);
      System.exit(1);
    }
    System.out.println("The losses match the reference.");
  }

  /** Returns the loss of every fifth epoch. */
  private static List<String> train(AdamantClient client) throws StatusException, InterruptedException {
    var losses = new ArrayList<String>();
    float[] x = {1, 2};
    float[][] parameters = Network.initialParameters();
    float[][] gradient = Network.zeros();
    try (var set = client.createSet("examples/java", Network.TENSORS, Initialization.INITIALIZATION_WRITTEN)) {
      long incarnation = client.writeParameters(set.name(), parameters);
      try (StepStream steps = client.openSteps()) {
        for (int epoch = 1; epoch <= EPOCHS; ++epoch) {
          float loss = Network.lossAndGradient(parameters, x, 1, gradient);
          if (epoch % 5 == 0) {
            // Rounded once: String.format rounds what it has shortened before, and half up.
            losses.add(new BigDecimal(loss).setScale(6, RoundingMode.HALF_EVEN).toPlainString());
            System.out.printf("Epoch %02d: loss = %s%n", epoch, losses.get(losses.size() - 1));
          }
          // Exactly once: this step, from this state, whatever becomes of the connection.
          var header =
              StepHeader.newBuilder()
                  .setSet(set.name())
                  .setIncarnation(incarnation)
                  .setRequestId(UUID.randomUUID().toString())
                  .setExpectedStep(epoch - 1)
                  .build();
          StepResult result = steps.step(header, Tensors.toChunks(gradient), parameters);
          if (result.getOutcome() != StepOutcome.STEP_OUTCOME_APPLIED) {
            throw new IllegalStateException("epoch " + epoch + ": " + result.getOutcome());
          }
        }
        steps.finish();
      }
    }
    return losses;
  }
}
