package adamant.example;

import adamant.v1.Dtype;
import adamant.v1.TensorChunk;
import com.google.protobuf.UnsafeByteOperations;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.ShortBuffer;
import java.util.ArrayList;
import java.util.List;

/** Tensors on their way: arrays of floats here, little-endian bytes there. */
public final class Tensors {
  /** 1 MiB of fp32: messages of that size are far below the 4 MiB that grpc-java and the server take. */
  static final int CHUNK_ELEMENTS = 1 << 18;

  private Tensors() {}

  /** Cuts tensors, in order of their index, into chunks. */
  public static List<TensorChunk> toChunks(float[]... tensors) {
    var chunks = new ArrayList<TensorChunk>();
    for (int index = 0; index < tensors.length; ++index) {
      float[] tensor = tensors[index];
      for (int begin = 0; begin < tensor.length; begin += CHUNK_ELEMENTS) {
        int count = Math.min(CHUNK_ELEMENTS, tensor.length - begin);
        // A new buffer is big-endian, on every machine.
        ByteBuffer bytes = ByteBuffer.allocate(count * Float.BYTES).order(ByteOrder.LITTLE_ENDIAN);
        bytes.asFloatBuffer().put(tensor, begin, count);
        chunks.add(
            TensorChunk.newBuilder()
                .setTensor(index)
                .setOffset(begin)
                // Not copied, as nobody else has the buffer.
                .setData(UnsafeByteOperations.unsafeWrap(bytes))
                .build());
      }
    }
    return chunks;
  }

  /** Copies chunks that came as bytes, of fp32 or bf16, to where they belong. */
  static void copy(List<TensorChunk> chunks, float[][] tensors) {
    for (TensorChunk chunk : chunks) {
      float[] tensor = tensors[chunk.getTensor()];
      int begin = Math.toIntExact(chunk.getOffset());
      // A view is big-endian again, whatever it is a view of.
      ByteBuffer bytes = chunk.getData().asReadOnlyByteBuffer().order(ByteOrder.LITTLE_ENDIAN);
      if (chunk.getDtype() == Dtype.DTYPE_BFLOAT16) {
        ShortBuffer upper = bytes.asShortBuffer();
        for (int i = 0; i < upper.limit(); ++i) {
          tensor[begin + i] = Float.intBitsToFloat(upper.get(i) << 16);
        }
      } else {
        bytes.asFloatBuffer().get(tensor, begin, bytes.limit() / Float.BYTES);
      }
    }
  }
}
