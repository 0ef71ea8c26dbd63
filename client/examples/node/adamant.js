// The little that a Node program wants on top of gRPC: promises, tensors as Float32Arrays, and steps in lock-step.
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { endianness } from 'node:os';
import { randomUUID } from 'node:crypto';
import { promisify } from 'node:util';
import grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';

if (endianness() !== 'LE') throw new Error('the bytes of a Float32Array travel as they are: they must be little-endian');

const definitions = loadSync('adamant/v1/service.proto', {
  includeDirs: [fileURLToPath(new URL('../../../proto', import.meta.url))],
  longs: Number, // Not Long objects. All that the server sends is at most 2^53, so that this is exact.
  enums: String,
  defaults: true, // Tensor 0 at offset 0 has both fields, instead of neither. What is `optional` stays absent.
});
const OptimizerService = grpc.loadPackageDefinition(definitions).adamant.v1.OptimizerService;

// 1 MiB of fp32: messages of that size are far below the 4 MiB that grpc-js and the server take.
const CHUNK_ELEMENTS = 1 << 18;
// Of any one call but a stream of steps, in milliseconds. A call that finds no place on the server waits for one.
export const TIMEOUT = 60_000;

export class Client {
  #stub;
  #unary;

  constructor(target) {
    this.#stub = new OptimizerService(target, grpc.credentials.createInsecure());
    this.#unary = (method, request) =>
      promisify(this.#stub[method]).call(this.#stub, request, new grpc.Metadata(), { deadline: Date.now() + TIMEOUT });
  }

  close() {
    this.#stub.close();
  }

  // Calls `use` with the name of a new set, trained by Adam with its defaults, which is deleted afterwards.
  async withSet(prefix, tensors, initialization, use) {
    const name = `${prefix}/${randomUUID()}`;
    await this.#unary('createParameterSet', { spec: { name, tensors, initialization } });
    try {
      return await use(name);
    } finally {
      await this.#unary('deleteParameterSet', { name });
    }
  }

  getStepResult(request) {
    return this.#unary('getStepResult', request);
  }

  // Replaces the parameters of every tensor of the set.
  async writeParameters(set, parameters) {
    let call;
    const response = new Promise((resolve, reject) => {
      call = this.#stub.writeTensors(new grpc.Metadata(), { deadline: Date.now() + TIMEOUT }, (error, response) =>
        error ? reject(error) : resolve(response),
      );
    });
    const messages = [
      { header: { set, mode: 'WRITE_MODE_PARAMETERS' } },
      ...toChunks(parameters).map((chunk) => ({ chunks: [chunk] })),
      { last: true },
    ];
    await writeAll(call, messages, response);
    call.end();
    return response;
  }

  // Fills `parameters`, arrays of the tensors' sizes, with those of one single step. Resolves to the read's header.
  async readParameters(set, parameters) {
    let header = null;
    const call = this.#stub.readTensors({ set }, new grpc.Metadata(), { deadline: Date.now() + TIMEOUT });
    for await (const response of call) {
      header ??= response.header;
      copyChunks(response.chunks, parameters);
    }
    return header;
  }

  // Calls `use` with a stream of steps, and ends that afterwards: an open one would keep the process from ending.
  async withSteps(use) {
    const call = this.#stub.step();
    const steps = new StepStream(call);
    try {
      const result = await use(steps);
      await steps.finish();
      return result;
    } catch (error) {
      call.cancel();
      throw error;
    }
  }
}

// Carries steps, one after the other, each answered before the next is sent.
class StepStream {
  #call;
  #responses;

  constructor(call) {
    this.#call = call;
    this.#responses = call[Symbol.asyncIterator]();
  }

  // Sends a gradient, and puts the updated parameters into `parameters`. Rejects with gRPC's error: then the stream has
  // ended, and `parameters` may be of no single step.
  async step(header, chunks, parameters) {
    // Asked for before anything is sent: from here on an error of the call is heard. Nobody else would hear it.
    let response = this.#responses.next();
    await writeAll(this.#call, toRequests(header, chunks), response);
    for (;;) {
      const { value, done } = await response;
      if (done) throw new Error('the server ended the stream without a result');
      copyChunks(value.chunks, parameters);
      if (value.result) return value.result;
      response = this.#responses.next();
    }
  }

  // Ends the stream, and waits until the server has ended it, too.
  async finish() {
    this.#call.end();
    const { done } = await this.#responses.next();
    if (!done) throw new Error('the server sent what nobody had asked for');
  }
}

// Writes no faster than the call takes it: what is written beyond that piles up in memory. Rejects as `response` does.
async function writeAll(call, messages, response) {
  response.catch(() => {}); // For whoever awaits it later.
  for (const message of messages) {
    if (!call.write(message)) await Promise.race([once(call, 'drain'), response]);
  }
}

// One message for a small model. Otherwise the header alone, so that the server makes room before the gradient moves.
function toRequests(header, chunks) {
  const bytes = chunks.reduce((sum, chunk) => sum + (chunk.data?.length ?? 0), 0);
  if (bytes <= 4 * CHUNK_ELEMENTS) return [{ header, chunks, last: true }];
  return [{ header }, ...chunks.map((chunk) => ({ chunks: [chunk] })), { last: true }];
}

// Cuts tensors, in order of their index, into chunks, which share the tensors' memory.
export function toChunks(tensors) {
  return tensors.flatMap((values, tensor) => {
    const chunks = [];
    for (let offset = 0; offset < values.length; offset += CHUNK_ELEMENTS) {
      const part = values.subarray(offset, offset + CHUNK_ELEMENTS);
      chunks.push({ tensor, offset, data: Buffer.from(part.buffer, part.byteOffset, part.byteLength) });
    }
    return chunks;
  });
}

// Copies chunks that came as bytes, of fp32 or bf16, to where they belong.
function copyChunks(chunks, tensors) {
  for (const { tensor, offset, dtype, data } of chunks) {
    if (dtype === 'DTYPE_BFLOAT16') {
      const bits = new Uint32Array(data.length / 2);
      for (let i = 0; i < bits.length; ++i) bits[i] = data.readUInt16LE(2 * i) << 16;
      tensors[tensor].set(new Float32Array(bits.buffer), offset);
    } else {
      // By bytes: `data` lies somewhere in its message, and a Float32Array only where a float may.
      const { buffer, byteOffset, byteLength } = tensors[tensor];
      new Uint8Array(buffer, byteOffset, byteLength).set(data, 4 * offset);
    }
  }
}

// What an error of this service carries beside its code and message, or undefined. Fields that do not apply are absent.
export function errorDetail(error) {
  const [trailer] = error.metadata?.get('grpc-status-details-bin') ?? [];
  if (!trailer) return undefined;
  const { details } = definitions['adamant.v1.ErrorStatus'].deserialize(trailer);
  const packed = details.find(({ type_url: type }) => type === 'type.googleapis.com/adamant.v1.ErrorDetail');
  return packed && definitions['adamant.v1.ErrorDetail'].deserialize(packed.value);
}
