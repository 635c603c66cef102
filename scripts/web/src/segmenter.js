// From an image to its label, as the bundle's inference.json gives it: z-score, sliding windows,
// argmax. The Python that it follows is monai_xtiny/deploy/segmenter.py.
import {
  axesToRas,
  checkUpright,
  gridBack,
  plannedGrid,
  resample,
  turnAndCrop,
  turnBack,
} from "./geometry.js";
import { Refusal } from "./refusal.js";

const SIGMA_SCALE = 0.125;
const SMALLEST_WEIGHT = 1e-3;
const LARGEST = 1e15;
// The axes of RAS, so that slices are cut along the last one.
const ORDERS = { 0: [1, 2, 0], 1: [0, 2, 1], 2: [0, 1, 2] };

/**
 * Label an image.
 * @param {object} image values, size, channels, and affine where there is one
 * @param {object} form what the network takes, as the ONNX file's metadata say
 * @param {(data: Float32Array, dims: number[]) => Promise<Float32Array>} predict the network
 * @param {(done: number, all: number) => void} tell how many windows are done
 * @returns {Promise<Uint8Array>} class indices in the order of the file
 */
export async function segment(image, form, predict, tell = () => {}) {
  checkValues(image);
  const isVolume = form.kind !== "images";
  const order = ORDERS[form.kind === "slices" ? (form.slice_axis ?? 2) : 2];
  const upright = [0, 1, 2].map((source) => ({ source, flip: false }));
  const axes = isVolume ? axesToRas(image.affine, order) : upright;
  const box = turnAndCrop(image, axes, form.crop);
  let grid = null;
  if (isVolume) {
    grid = gridOf(box.shape.slice(1), image, axes, order, form.spacing);
  }
  const prepared = grid ? resample(box, grid) : { ...box };
  normalize(prepared);
  let logits = await slideWindows(prepared, form, predict, tell);
  if (grid) logits = resample(logits, gridBack(grid, box.shape.slice(1)));
  return turnBack(argmax(logits), box.shape, box.first, axes, image.size);
}

/** The grid of the plan's spacing; null where the image has it. MONAI plans in the order of RAS. */
function gridOf(size, image, axes, order, spacing) {
  const inRas = (values) => [0, 1, 2].map((axis) => values[order.indexOf(axis)]);
  const columns = axes.map(({ source, flip }) =>
    image.affine.map((row) => (flip ? -row[source] : row[source])),
  );
  const grid = plannedGrid(inRas(size), inRas(columns), spacing);
  if (grid === null) return null;
  checkUpright(image.affine, image.size);
  const turned = (values) => order.map((axis) => values[axis]);
  const { size: resized, factors, shifts } = grid;
  return { size: turned(resized), factors: turned(factors), shifts: turned(shifts) };
}

/** Refuse values that are not finite, and constant channels. */
function checkValues({ values, channels }) {
  const count = values.length / channels;
  for (let channel = 0; channel < channels; channel++) {
    let [low, high] = [Infinity, -Infinity];
    for (let index = channel * count; index < (channel + 1) * count; index++) {
      const value = values[index];
      if (!Number.isFinite(value)) {
        throw new Refusal("some voxels are NaN or infinite: repair it");
      }
      if (value < low) low = value;
      if (value > high) high = value;
    }
    if (Math.max(-low, high) > LARGEST) {
      throw new Refusal(`it reaches from ${low} to ${high}: replace such values (no data?)`);
    }
    if (low === high) throw new Refusal(`it is ${low} everywhere, so there is nothing to find`);
  }
}

/** Every channel at mean 0 and standard deviation 1, in place. */
function normalize({ data, shape }) {
  const count = data.length / shape[0];
  for (let channel = 0; channel < shape[0]; channel++) {
    const values = data.subarray(channel * count, (channel + 1) * count);
    let sum = 0;
    for (const value of values) sum += value;
    const mean = sum / count;
    let squares = 0;
    for (const value of values) squares += (value - mean) ** 2;
    const deviation = Math.sqrt(squares / count) || 1;
    for (let index = 0; index < count; index++) values[index] = (values[index] - mean) / deviation;
  }
}

/** Logits of overlapping windows, blended with Gaussian weights; one window where it holds all. */
async function slideWindows({ data, shape }, form, predict, tell) {
  const patch = [...form.patch_size, 1].slice(0, 3);
  const dims = form.patch_size.length;
  const [channels, ...size] = shape;
  const target = size.map((edge, axis) => Math.max(edge, patch[axis]));
  const before = size.map((edge, axis) => Math.floor((target[axis] - edge) / 2));
  const corners = product(target.map((edge, axis) => windowStarts(edge, patch[axis], form.overlap)));
  const weights = windowWeights(patch);
  const voxels = patch[0] * patch[1] * patch[2];
  const classes = form.labels.length;
  const isOne = corners.length === 1;
  const sums = new Float32Array(classes * size[0] * size[1] * size[2]);
  const total = new Float32Array(size[0] * size[1] * size[2]);
  for (const [number, corner] of corners.entries()) {
    tell(number, corners.length);
    const window = new Float32Array(channels * voxels);
    const origin = corner.map((at, axis) => at - before[axis]);
    eachRow(size, patch, origin, (from, to, length) => {
      for (let c = 0; c < channels; c++) {
        const start = c * size[0] * size[1] * size[2] + from;
        window.set(data.subarray(start, start + length), c * voxels + to);
      }
    });
    const logits = await predict(window, [1, channels, ...patch.slice(0, dims)]);
    eachRow(size, patch, origin, (to, from, length) => {
      for (let c = 0; c < classes; c++) {
        const place = c * total.length + to;
        for (let k = 0; k < length; k++) {
          sums[place + k] += logits[c * voxels + from + k] * (isOne ? 1 : weights[from + k]);
        }
      }
      for (let k = 0; k < length; k++) total[to + k] += isOne ? 1 : weights[from + k];
    });
  }
  for (let c = 0; c < classes; c++) {
    for (let at = 0; at < total.length; at++) sums[c * total.length + at] /= total[at];
  }
  return { data: sums, shape: [classes, ...size] };
}

/** Rows of a window that lie in the image: where in the image, where in the window, how long. */
function eachRow(size, patch, origin, visit) {
  const first = origin.map((at) => Math.max(0, -at));
  const last = patch.map((edge, axis) => Math.min(edge, size[axis] - origin[axis]));
  const length = last[2] - first[2];
  for (let i = first[0]; i < last[0]; i++)
    for (let j = first[1]; j < last[1]; j++) {
      const row = ((i + origin[0]) * size[1] + j + origin[1]) * size[2] + first[2] + origin[2];
      visit(row, (i * patch[1] + j) * patch[2] + first[2], length);
    }
}

/** Where windows start along an axis, the last one at the end. */
function windowStarts(edge, length, overlap) {
  const step = Math.max(1, Math.floor(length * (1 - overlap)));
  const starts = [];
  for (let at = 0; at < edge - length; at += step) starts.push(at);
  return [...starts, edge - length];
}

/** A Gaussian whose sigma is an eighth of each edge, 0.001 at least. */
function windowWeights(patch) {
  const profiles = patch.map((length) =>
    Float32Array.from({ length }, (_, index) =>
      Math.exp((index - (length - 1) / 2) ** 2 / (-2 * (SIGMA_SCALE * length) ** 2)),
    ),
  );
  const weights = new Float32Array(patch[0] * patch[1] * patch[2]);
  let at = 0;
  for (const x of profiles[0])
    for (const y of profiles[1])
      for (const z of profiles[2]) weights[at++] = Math.max(Math.fround(x * y) * z, SMALLEST_WEIGHT);
  return weights;
}

function product(lists) {
  return lists.reduce((found, list) => found.flatMap((head) => list.map((item) => [...head, item])), [
    [],
  ]);
}

/** Index of the largest logit, the first on a tie. */
function argmax({ data, shape }) {
  const count = data.length / shape[0];
  const label = new Uint8Array(count);
  for (let at = 0; at < count; at++) {
    let best = data[at];
    for (let c = 1; c < shape[0]; c++) {
      if (data[c * count + at] > best) {
        best = data[c * count + at];
        label[at] = c;
      }
    }
  }
  return label;
}
