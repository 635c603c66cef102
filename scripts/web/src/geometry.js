// Turning to RAS, cropping and resampling, as MONAI's Orientationd, CropForegroundd and Spacingd do.
// Arrays are (C, x, y, z) with z fastest; 2D images have one plane.
import { columnLengths, determinant } from "./nifti.js";
import { Refusal } from "./refusal.js";

const AFFINE_TOLERANCE = 1e-3; // MONAI's
const CORNER_TOLERANCE = 1e-8; // voxels, NumPy's

/**
 * Where each axis of the array comes from, so that the axes are those of RAS, in an order.
 * @param {number[][]} affine from voxels of the file to mm
 * @param {number[]} order of the axes: 0 left to right, 1 back to front, 2 down to up
 * @returns {{source: number, flip: boolean}[]}
 */
export function axesToRas(affine, order) {
  const lengths = columnLengths(affine);
  let near = affine.map((row) => [0, 1, 2].map((k) => row[k] / lengths[k]));
  // The closest rotation or reflection, by Newton's iteration for the polar decomposition.
  for (let step = 0; step < 50; step++) {
    const turned = inverseTransposed(near);
    near = near.map((row, i) => row.map((value, j) => (value + turned[i][j]) / 2));
  }
  const left = near.map((row) => [...row]);
  const strongest = [0, 1, 2].map((k) => Math.max(...left.map((row) => row[k] ** 2)));
  const columns = [0, 1, 2].sort((a, b) => strongest[b] - strongest[a]);
  const axes = [];
  for (const source of columns) {
    const column = left.map((row) => row[source]);
    const target = column.reduce((best, v, i) => (Math.abs(v) > Math.abs(column[best]) ? i : best), 0);
    axes[target] = { source, flip: column[target] < 0 };
    left[target] = [0, 0, 0];
  }
  return order.map((axis) => axes[axis]);
}

function inverseTransposed(m) {
  const scale = 1 / determinant(m);
  const cofactor = (i, j) => {
    const [a, b] = [0, 1, 2].filter((k) => k !== i);
    const [c, d] = [0, 1, 2].filter((k) => k !== j);
    return ((i + j) % 2 ? -1 : 1) * (m[a][c] * m[b][d] - m[a][d] * m[b][c]);
  };
  return [0, 1, 2].map((i) => [0, 1, 2].map((j) => cofactor(i, j) * scale));
}

/** Refuse axes that are not upright on each other: resampling them is not axis by axis. */
export function checkUpright(affine, size) {
  const lengths = columnLengths(affine);
  const skew = (a, b) =>
    Math.abs([0, 1, 2].reduce((sum, i) => sum + affine[i][a] * affine[i][b], 0)) /
    (lengths[a] * lengths[b]);
  const worst = Math.max(skew(0, 1), skew(0, 2), skew(1, 2)) * Math.max(...size);
  if (worst > 0.1) {
    throw new Refusal("its axes are sheared, and it needs resampling: run the bundle in Python");
  }
}

/** How an index of the turned array steps through the file. */
function strides(axes, size) {
  const steps = [1, size[0], size[0] * size[1]];
  return axes.map(({ source, flip }) => ({
    edge: size[source],
    step: flip ? -steps[source] : steps[source],
    start: flip ? (size[source] - 1) * steps[source] : 0,
  }));
}

/**
 * Turn an image of file order, and cut the box of its voxels that are not 0 in every channel.
 * @returns {{data: Float32Array, shape: number[], first: number[]}}
 */
export function turnAndCrop(image, axes, isCropped) {
  const { values, size, channels } = image;
  const [x, y, z] = strides(axes, size);
  const count = size[0] * size[1] * size[2];
  const first = [0, 0, 0];
  const last = [x.edge, y.edge, z.edge];
  if (isCropped) {
    first.splice(0, 3, ...last);
    last.fill(0);
    for (let i = 0; i < x.edge; i++)
      for (let j = 0; j < y.edge; j++) {
        let at = x.start + y.start + z.start + i * x.step + j * y.step;
        for (let k = 0; k < z.edge; k++, at += z.step) {
          let isContent = false;
          for (let c = 0; c < channels && !isContent; c++) isContent = values[c * count + at] !== 0;
          if (!isContent) continue;
          [i, j, k].forEach((index, axis) => {
            if (index < first[axis]) first[axis] = index;
            if (index >= last[axis]) last[axis] = index + 1;
          });
        }
      }
  }
  const shape = [channels, ...last.map((end, axis) => end - first[axis])];
  const data = new Float32Array(shape.reduce((product, edge) => product * edge, 1));
  let to = 0;
  for (let c = 0; c < channels; c++)
    for (let i = first[0]; i < last[0]; i++)
      for (let j = first[1]; j < last[1]; j++) {
        let at = c * count + x.start + y.start + z.start + i * x.step + j * y.step + first[2] * z.step;
        for (let k = first[2]; k < last[2]; k++, at += z.step) data[to++] = values[at];
      }
  return { data, shape, first };
}

/** A label of the box, back in the order of the file; 0 outside. */
export function turnBack(label, shape, first, axes, size) {
  const [x, y, z] = strides(axes, size);
  const whole = new Uint8Array(size[0] * size[1] * size[2]);
  let from = 0;
  for (let i = 0; i < shape[1]; i++)
    for (let j = 0; j < shape[2]; j++) {
      let at = x.start + y.start + z.start;
      at += (i + first[0]) * x.step + (j + first[1]) * y.step + first[2] * z.step;
      for (let k = 0; k < shape[3]; k++, at += z.step) whole[at] = label[from++];
    }
  return whole;
}

/**
 * The grid of another spacing, as MONAI's Spacing lays it: from the first voxel on; or, where the
 * axes lean ever so little (the rounded affine of a turned volume), around the same center.
 * @param {number[]} size of the array
 * @param {number[][]} columns of its affine, mm, one per axis
 * @param {number[]} to the spacing wanted, mm; -1 along an axis leaves it, as that of slices
 * @returns {{size: number[], factors: number[], shifts: number[]} | null} voxels of the array are
 *   at index * factor + shift; null where nothing changes
 */
export function plannedGrid(size, columns, to) {
  const from = columns.map((column) => Math.hypot(...column));
  const factors = from.map((edge, axis) =>
    to[axis] <= 0 || Math.abs(edge - to[axis]) <= AFFINE_TOLERANCE ? 1 : to[axis] / edge,
  );
  const resized = size.map((edge, axis) => roundHalfEven((edge - 1) / factors[axis] + 1));
  const isSame =
    factors.every((factor) => Math.abs(factor - 1) <= AFFINE_TOLERANCE) &&
    resized.every((edge, axis) => edge === size[axis]);
  if (isSame) return null;
  const shifts = isCornerFirst(size, columns, from, factors)
    ? [0, 0, 0]
    : size.map((edge, axis) => (edge - factors[axis] * resized[axis]) / 2);
  return { size: resized, factors, shifts };
}

/** Whether no corner lies before the first voxel, seen along the axes made upright. */
function isCornerFirst(size, columns, lengths, factors) {
  const upright = [];
  for (let j = 0; j < 3; j++) {
    let rest = [...columns[j]];
    for (let i = 0; i < j; i++) {
      const share = dot(upright[i], columns[j]);
      rest = rest.map((value, k) => value - share * upright[i][k]);
      const lean = (share / (lengths[i] * factors[i])) * (size[j] - 1);
      if (lean < -CORNER_TOLERANCE) return false;
    }
    const length = Math.hypot(...rest);
    upright[j] = rest.map((value) => value / length);
  }
  return true;
}

const dot = (a, b) => a.reduce((sum, value, k) => sum + value * b[k], 0);

function roundHalfEven(value) {
  const low = Math.floor(value);
  if (Math.abs(value - low - 0.5) < 1e-9) return low % 2 === 0 ? low : low + 1;
  return Math.round(value);
}

/** The way back from a grid to the array of some size. */
export function gridBack({ factors, shifts }, size) {
  return {
    size,
    factors: factors.map((factor) => 1 / factor),
    shifts: shifts.map((shift, axis) => -shift / factors[axis]),
  };
}

/** Linear interpolation axis by axis; the border is repeated outside. */
export function resample({ data, shape }, { size, factors, shifts }) {
  let current = { data, shape: [...shape] };
  for (let axis = 0; axis < 3; axis++) {
    const isSame = factors[axis] === 1 && shifts[axis] === 0;
    if (isSame && size[axis] === current.shape[axis + 1]) continue;
    current = resampleAxis(current, axis + 1, size[axis], factors[axis], shifts[axis]);
  }
  return current;
}

function resampleAxis({ data, shape }, axis, edge, factor, shift) {
  const inner = shape.slice(axis + 1).reduce((product, length) => product * length, 1);
  const outer = shape.slice(0, axis).reduce((product, length) => product * length, 1);
  const former = shape[axis];
  const found = new Float32Array(outer * edge * inner);
  for (let index = 0; index < edge; index++) {
    const position = Math.min(Math.max(index * factor + shift, 0), former - 1);
    const low = Math.floor(position);
    const high = Math.min(low + 1, former - 1);
    const share = position - low;
    for (let o = 0; o < outer; o++) {
      const [a, b] = [(o * former + low) * inner, (o * former + high) * inner];
      const to = (o * edge + index) * inner;
      for (let i = 0; i < inner; i++) {
        found[to + i] = data[a + i] * (1 - share) + data[b + i] * share;
      }
    }
  }
  const resized = [...shape];
  resized[axis] = edge;
  return { data: found, shape: resized };
}
