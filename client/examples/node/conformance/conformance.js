// Checks one promise of a server, as seen from Node, and exits with 1 if it is broken. tests/interop/conformance runs it.
//
//   node conformance.js chunks|replay|error|health|reflection|bf16 HOST:PORT
import { deepStrictEqual as same } from 'node:assert';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { protoPath as healthProto } from 'grpc-health-check';
import descriptor from 'protobufjs/ext/descriptor/index.js';
import { Client, TIMEOUT, errorDetail, toChunks } from '../adamant.js';
import { Adam } from './adam.js';

const SERVICE = 'adamant.v1.OptimizerService';

function sameBits(what, expected, got) {
  const bits = (values) => new Uint32Array(values.buffer, values.byteOffset, values.length);
  const [expectedBits, gotBits] = [bits(expected), bits(got)];
  const i = expectedBits.findIndex((value, index) => value !== gotBits[index]);
  if (i !== -1) throw new Error(`${what}: element ${i}: expected ${expected[i]}, got ${got[i]}`);
}

// In [-1, 1), as every language here makes them: seed 0 are parameters, 1 and on gradients. Every 16th is so small that
// Adam takes some of them for zero.
function pseudoRandom(count, seed) {
  const offset = Math.imul(seed, 2246822519);
  return Float32Array.from({ length: count }, (_, i) => {
    const value = ((Math.imul(i, 2654435761) + offset) >>> 8) * 2 ** -23 - 1;
    return i % 16 === 0 ? value * 2 ** -57 : value;
  });
}

function withTensor(client, shape, initialization, use) {
  return client.withSet('conformance/node', [{ name: 'x', shape }], initialization, use);
}

const header = (set, step) => ({ set, requestId: `step ${step}`, expectedStep: step });

// Resolves to the error that `promise` rejects with.
function errorOf(what, promise) {
  return promise.then(
    () => {
      throw new Error(`${what}: expected an error, got none`);
    },
    (error) => error,
  );
}

// Calls `use` with a client of another service, by the .proto file that its package ships.
async function withOtherClient(target, file, find, use) {
  const definitions = loadSync(file, { longs: Number, enums: String, defaults: true, oneofs: true });
  const client = new (find(grpc.loadPackageDefinition(definitions)))(target, grpc.credentials.createInsecure());
  try {
    await use(client);
  } finally {
    client.close();
  }
}

const cases = {
  // A tensor of several messages, each way, with gRPC's default limits.
  async chunks(client) {
    const elements = 3_000_000;
    await withTensor(client, [elements / 3, 3], 'INITIALIZATION_WRITTEN', async (name) => {
      const local = new Adam(pseudoRandom(elements, 0));
      const parameters = new Float32Array(elements);
      await client.writeParameters(name, [local.p]);
      await client.withSteps(async (steps) => {
        for (let step = 0; step < 3; ++step) {
          const gradient = pseudoRandom(elements, step + 1);
          await steps.step(header(name, step), toChunks([gradient]), [parameters]);
          local.update(gradient);
          sameBits(`the reply of step ${step + 1}`, local.p, parameters);
        }
      });
      parameters.fill(0);
      const read = await client.readParameters(name, [parameters]);
      same(read.step, 3);
      sameBits('a read', local.p, parameters);
    });
  },

  // A step that is sent again is answered, not applied again.
  async replay(client) {
    const gradient = Float32Array.of(0.5, -0.25);
    const local = new Adam(new Float32Array(2));
    local.update(gradient);
    await withTensor(client, [2], 'INITIALIZATION_ZEROS', async (name) => {
      const results = [];
      for (let i = 0; i < 2; ++i) {
        const parameters = new Float32Array(2);
        const send = (steps) => steps.step(header(name, 0), toChunks([gradient]), [parameters]);
        results.push(await client.withSteps(send));
        sameBits('the reply', local.p, parameters);
      }
      same(results[1], { ...results[0], replayed: true });
      same(results[0].replayed, false);
      const { state, step } = await client.getStepResult({ set: name, requestId: 'step 0' });
      same({ state, step }, { state: 'STEP_STATE_COMMITTED', step: 1 });
    });
  },

  // An error says in a form for programs what was wrong and where.
  async error(client) {
    await withTensor(client, [4], 'INITIALIZATION_ZEROS', async (name) => {
      const gap = { tensor: 0, offset: 1, values: [1, 1, 1] };
      const send = (steps) => steps.step(header(name, 0), [gap], [new Float32Array(4)]);
      const error = await errorOf('a gap', client.withSteps(send));
      same(error.code, grpc.status.INVALID_ARGUMENT, error);
      // What is zero is there, and not absent. Whether the detail says where the set stands is not looked at.
      const { incarnation, step, ...detail } = errorDetail(error);
      same(detail, {
        reason: 'ERROR_REASON_CHUNK_OUT_OF_ORDER',
        set: name,
        tensor: 0,
        offset: 1,
        expectedOffset: 0,
        field: 'chunks[0].offset',
      });
    });
  },

  async health(_, target) {
    await withOtherClient(
      target,
      healthProto,
      (packages) => packages.grpc.health.v1.Health,
      async (client) => {
        const check = (service) =>
          promisify(client.check).call(client, { service }, new grpc.Metadata(), { deadline: Date.now() + TIMEOUT });
        same(await check(''), { status: 'SERVING' });
        same(await check(SERVICE), { status: 'SERVING' });
        const error = await errorOf('the health of nobody', check('nobody'));
        same(error.code, grpc.status.NOT_FOUND, error);
      },
    );
  },

  async reflection(_, target) {
    const file = join(
      dirname(createRequire(import.meta.url).resolve('@grpc/reflection')),
      '../proto/grpc/reflection/v1/reflection.proto',
    );
    await withOtherClient(
      target,
      file,
      (packages) => packages.grpc.reflection.v1.ServerReflection,
      async (client) => {
        const call = client.serverReflectionInfo();
        call.write({ listServices: '' });
        call.write({ fileContainingSymbol: SERVICE });
        call.end();
        const [services, files] = await call.toArray();
        same(services.listServicesResponse.service.filter(({ name }) => name === SERVICE).length, 1);
        const [step] = files.fileDescriptorResponse.fileDescriptorProto
          .flatMap((bytes) => descriptor.FileDescriptorProto.decode(bytes).service)
          .flatMap(({ method }) => method)
          .filter(({ name }) => name === 'Step');
        same([step.clientStreaming, step.serverStreaming], [true, true]);
      },
    );
  },

  // Gradients in 16 bits are widened exactly, and a reply in 16 bits is rounded to the nearest.
  async bf16(client) {
    const elements = 4096;
    await withTensor(client, [elements], 'INITIALIZATION_ZEROS', async (name) => {
      const local = new Adam(new Float32Array(elements));
      await client.withSteps(async (steps) => {
        for (const [step, replyDtype] of ['DTYPE_FLOAT32', 'DTYPE_BFLOAT16'].entries()) {
          const gradient = pseudoRandom(elements, step + 1);
          // The upper half of a float is the bf16 below it.
          const bits = new Uint32Array(gradient.buffer);
          const upper = Uint16Array.from(bits, (value) => value >>> 16);
          upper.forEach((value, i) => (bits[i] = value << 16));
          const parameters = new Float32Array(elements);
          const chunk = { dtype: 'DTYPE_BFLOAT16', data: Buffer.from(upper.buffer) };
          await steps.step({ ...header(name, step), replyDtype }, [chunk], [parameters]);
          local.update(gradient);
          const expected = local.p.slice();
          if (replyDtype === 'DTYPE_BFLOAT16') {
            const rounded = new Uint32Array(expected.buffer);
            rounded.forEach((value, i) => (rounded[i] = (value + 0x7fff + ((value >>> 16) & 1)) & 0xffff0000));
          }
          sameBits(`the reply in ${replyDtype}`, expected, parameters);
        }
      });
    });
  },
};

const [name, target] = process.argv.slice(2);
if (!target || !Object.hasOwn(cases, name)) {
  console.error(`usage: node conformance.js ${Object.keys(cases).join('|')} HOST:PORT`);
  process.exit(2);
}
const client = new Client(target);
try {
  await cases[name](client, target);
} catch (error) {
  console.error(`conformance ${name}: ${error.message}`);
  process.exitCode = 1;
} finally {
  client.close();
}
