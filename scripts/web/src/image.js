// An image of one file or of one per channel, and its label as a file.
import { encode } from "fast-png";

import { columnLengths, determinant, readNifti, writeNifti } from "./nifti.js";
import { readRaster } from "./raster.js";
import { Refusal } from "./refusal.js";

const MAX_MISPLACEMENT = 0.1; // voxels; further apart, files are not on one grid

export const isNifti = (name) => /\.nii(\.gz)?$/i.test(name);
const isRaster = (name) => /\.(png|jpe?g)$/i.test(name);

/**
 * Read the files of an image.
 * @param {{name: string, buffer: ArrayBuffer}[]} files one, or one per channel
 * @param {object} form what the network takes
 */
export async function readImage(files, form) {
  const sorted = [...files].sort((a, b) => (a.name < b.name ? -1 : 1));
  const images = [];
  for (const file of sorted) {
    try {
      images.push(await readFile(file, form));
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      throw new Refusal(`${file.name}: ${error.message}.`);
    }
  }
  const [first, ...others] = images;
  for (const [index, other] of others.entries()) {
    if (first.size.some((edge, axis) => edge !== other.size[axis])) {
      throw new Refusal(
        `${sorted[0].name} and ${sorted[index + 1].name} have different sizes ` +
          `(${first.size.join(" x ")}, ${other.size.join(" x ")}): drop the channels of one image.`,
      );
    }
    if (first.affine && misplacement(first, other) >= MAX_MISPLACEMENT) {
      throw new Refusal(
        `${sorted[0].name} and ${sorted[index + 1].name} do not lie on one grid: resample them.`,
      );
    }
  }
  const channels = images.reduce((sum, image) => sum + image.channels, 0);
  if (channels !== form.in_channels) {
    const what = images.length > 1 ? `the ${images.length} files have` : `${sorted[0].name} has`;
    throw new Refusal(
      `${what} ${channels} ${channels === 1 ? "channel" : "channels"}, and this network takes ` +
        `${form.in_channels}: ${form.in_channels > 1 ? "drop all channels together" : "convert it"}.`,
    );
  }
  const values = new Float32Array(images.reduce((sum, image) => sum + image.values.length, 0));
  let at = 0;
  for (const image of images) {
    values.set(image.values, at);
    at += image.values.length;
  }
  return { ...first, values, channels, name: sorted[0].name };
}

async function readFile({ name, buffer }, form) {
  if (buffer.byteLength === 0) throw new Refusal("it is empty");
  const wanted = form.kind === "images" ? "PNG or JPG images" : "NIfTI volumes (.nii, .nii.gz)";
  if (!isNifti(name) && !isRaster(name)) {
    throw new Refusal(`it is of no kind that this page reads; this network takes ${wanted}`);
  }
  if (form.kind !== "images" && !isNifti(name)) {
    throw new Refusal(`it is an image, and this network takes ${wanted}`);
  }
  const image = isNifti(name) ? readNifti(buffer) : await readRaster(buffer);
  if (isNifti(name) && (image.axes === 2) !== (form.kind === "images")) {
    throw new Refusal(`it has ${image.axes} axes, and this network takes ${wanted}`);
  }
  return image;
}

function misplacement(first, other) {
  const smallest = Math.min(...columnLengths(first.affine));
  let worst = 0;
  for (const corner of [0, 1, 2, 3, 4, 5, 6, 7]) {
    const at = [0, 1, 2].map((axis) => ((corner >> axis) & 1) * (first.size[axis] - 1));
    for (let row = 0; row < 3; row++) {
      const place = ({ affine }) =>
        at.reduce((sum, value, k) => sum + affine[row][k] * value, affine[row][3]);
      worst = Math.max(worst, Math.abs(place(first) - place(other)));
    }
  }
  return worst / smallest;
}

/** The label as a file beside its image: NIfTI with the same header, or PNG of class indices. */
export function labelFile(label, image) {
  const stem = image.name.replace(/(\.nii\.gz|\.[^.]*)$/i, "").replace(/_0000$/, "");
  if (image.header) return { name: `${stem}_label.nii`, bytes: writeNifti(label, image) };
  const [width, height] = image.size;
  return {
    name: `${stem}_label.png`,
    bytes: encode({ width, height, data: label, depth: 8, channels: 1 }),
  };
}

/** Voxels of each class; and the volume of one in ml, where the file says how large it is. */
export function measure(label, image, numClasses) {
  const counts = new Array(numClasses).fill(0);
  for (const value of label) counts[value]++;
  const isPhysical = Boolean(image.affine) && image.axes > 2;
  return { counts, voxelMl: isPhysical ? Math.abs(determinant(image.affine)) / 1000 : null };
}

/** Pixels to look at, RGBA: from the smallest to the largest value, as they come in color. */
export function previewOf({ values, size, channels }) {
  const count = size[0] * size[1];
  const isColor = channels === 3;
  let [low, high] = [Infinity, -Infinity];
  for (const value of isColor ? [0, 255] : values.subarray(0, count)) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  const pixels = new Uint8ClampedArray(4 * count);
  for (let index = 0; index < count; index++) {
    for (let c = 0; c < 3; c++) {
      const value = values[(isColor ? c * count : 0) + index];
      pixels[4 * index + c] = (255 * (value - low)) / (high - low || 1);
    }
    pixels[4 * index + 3] = 255;
  }
  return pixels;
}
