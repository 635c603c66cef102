// Reads and labels images off the page's own thread, so that the page stays alive.
import * as ort from "onnxruntime-web/wasm";

import { isNifti, labelFile, measure, previewOf, readImage } from "./image.js";
import { Refusal } from "./refusal.js";
import { segment } from "./segmenter.js";

let session = null;
let form = null;
let networkMs = 0;

const actions = { start, label };

self.onmessage = async ({ data }) => {
  try {
    await actions[data.action](data);
  } catch (error) {
    self.postMessage({ kind: "error", id: data.id, message: sentenceOf(error) });
  }
};

async function start({ wasm, model, form: described }) {
  form = described;
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = wasm;
  session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  self.postMessage({ kind: "ready" });
}

async function predict(data, dims) {
  const began = performance.now();
  const output = await session.run({ image: new ort.Tensor("float32", data, dims) });
  networkMs += performance.now() - began;
  return output.pred.data;
}

async function label({ id, files }) {
  const began = performance.now();
  networkMs = 0;
  const image = await readImage(files, form);
  const tell = (done, all) => self.postMessage({ kind: "progress", id, done, all });
  const found = await segment(image, form, predict, tell).catch((error) => {
    throw error instanceof Refusal ? new Refusal(`${image.name}: ${error.message}.`) : error;
  });
  const totalMs = performance.now() - began;
  const answer = {
    kind: "label",
    id,
    label: found,
    size: image.size,
    preview: form.kind === "images" ? previewOf(image) : null,
    isVolume: isNifti(image.name) && form.kind !== "images",
    file: labelFile(found, image),
    ...measure(found, image, form.labels.length),
    networkMs,
    totalMs,
  };
  self.postMessage(answer);
}

function sentenceOf(error) {
  if (error instanceof Refusal) return error.message;
  if (error instanceof RangeError || /memory|alloc/i.test(String(error))) {
    return "The image needs more memory than a browser gives to a page: run the bundle in Python.";
  }
  return `The page failed on this image (${error?.message ?? error}).`;
}
