// Plays a case in onnxruntime-node or onnxruntime-web: node play.mjs PACKAGE CASE.json MODEL
import { readFile } from "node:fs/promises";

const [name, casePath, modelPath] = process.argv.slice(2);
const module = await import(name);
const ort = module.default ?? module;
if (name === "onnxruntime-web") ort.env.wasm.numThreads = 1;
const recorded = JSON.parse(await readFile(casePath, "utf8"));
const session = await ort.InferenceSession.create(new Uint8Array(await readFile(modelPath)), {
  executionProviders: [name === "onnxruntime-web" ? "wasm" : "cpu"],
});
const tensor = (values, shape) => new ort.Tensor("float32", Float32Array.from(values), shape);
const states = recorded.states; // [{input, output, shape}]
let different = 0;
const where = []; // [step, action, value] of what differs
let largest = 0;
for (let episode = 0; episode < 2; episode++) {
  let state = Object.fromEntries(
    states.map((s) => [s.input, tensor(Array(s.shape.reduce((a, b) => a * b, 1)).fill(episode ? NaN : 0), s.shape)]),
  );
  for (const [step, observed] of recorded.observation.entries()) {
    const found = await session.run({ [recorded.input]: tensor(observed, recorded.shape), ...state });
    found[recorded.output].data.forEach((value, i) => {
      const expected = Math.fround(recorded.action[step][i]);
      different += value === expected ? 0 : 1;
      if (value !== expected) where.push([step, i, value]);
      largest = Math.max(largest, Math.abs(value - expected));
    });
    state = Object.fromEntries(states.map((s) => [s.input, found[s.output]]));
  }
}
const actions = 2 * recorded.action.flat().length;
console.log(JSON.stringify({ version: ort.env?.versions?.common ?? "?", actions, different, largest, where }));
