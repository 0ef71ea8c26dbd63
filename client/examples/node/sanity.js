// Trains a small network whose optimizer lives on a server, and checks that the losses are those of the reference.
//
//   node sanity.js localhost:50051
import { randomUUID } from 'node:crypto';
import { Client, toChunks } from './adamant.js';
import { TENSORS, initialParameters, lossAndGradient, zeros } from './network.js';

const EPOCHS = 50;
// PyTorch's, of epochs 5, 10, ..., 50, each before its update.
const REFERENCE_LOSSES = '0.809774 0.721449 0.638959 0.562460 0.491979 0.428558 0.372196 0.320848 0.274360 0.232563';

// Resolves to the loss of every fifth epoch.
async function train(client, name) {
  const parameters = initialParameters();
  const gradient = zeros();
  const losses = [];
  const { incarnation } = await client.writeParameters(name, parameters);
  await client.withSteps(async (steps) => {
    for (let epoch = 1; epoch <= EPOCHS; ++epoch) {
      const loss = lossAndGradient(parameters, [1, 2], 1, gradient).toFixed(6);
      if (epoch % 5 === 0) {
        console.log(`Epoch ${String(epoch).padStart(2, '0')}: loss = ${loss}`);
        losses.push(loss);
      }
      // Exactly once: this step, from this state, whatever becomes of the connection.
      const header = { set: name, incarnation, requestId: randomUUID(), expectedStep: epoch - 1 };
      const { outcome } = await steps.step(header, toChunks(gradient), parameters);
      if (outcome !== 'STEP_OUTCOME_APPLIED') throw new Error(`epoch ${epoch}: ${outcome}`);
    }
  });
  return losses;
}

const [target] = process.argv.slice(2);
if (!target) {
  console.error('usage: node sanity.js HOST:PORT');
  process.exit(2);
}
const client = new Client(target);
try {
  const losses = await client.withSet('examples/node', TENSORS, 'INITIALIZATION_WRITTEN', (name) => train(client, name));
  if (losses.join(' ') !== REFERENCE_LOSSES) {
    throw new Error(`expected the losses ${REFERENCE_LOSSES}, got ${losses.join(' ')}`);
  }
  console.log('The losses match the reference.');
} catch (error) {
  console.error(`sanity: ${error.message}`);
  process.exitCode = 1;
} finally {
  client.close();
}
