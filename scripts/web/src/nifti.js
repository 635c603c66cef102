// NIfTI files as nibabel and MONAI read them: intensities, and where the voxels lie.
import { gunzipSync } from "fflate";
import * as nifti from "nifti-reader-js";

import { Refusal } from "./refusal.js";

const READERS = {
  2: ["getUint8", 1],
  4: ["getInt16", 2],
  8: ["getInt32", 4],
  16: ["getFloat32", 4],
  64: ["getFloat64", 8],
  256: ["getInt8", 1],
  512: ["getUint16", 2],
  768: ["getUint32", 4],
  1024: ["getBigInt64", 8],
  1280: ["getBigUint64", 8],
};
const TOLERANCE = 1e-5;

/**
 * Read a file.
 * @param {ArrayBuffer} buffer its bytes, compressed or not
 * @returns {{values: Float32Array, size: number[], channels: number, affine: number[][],
 *   header: object, axes: number}} values in the file's order, x fastest and channels slowest
 */
export function readNifti(buffer) {
  let header;
  let bytes;
  try {
    bytes = nifti.isCompressed(buffer) ? gunzipSync(new Uint8Array(buffer)).buffer : buffer;
    if (!nifti.isNIFTI(bytes)) throw new Error("not a NIfTI file");
    header = nifti.readHeader(bytes);
  } catch (error) {
    throw new Refusal(`it cannot be read (${error.message}): repair it`);
  }
  const reader = READERS[header.datatypeCode];
  if (!reader) {
    throw new Refusal(`its voxels are of NIfTI's type ${header.datatypeCode}: save real numbers`);
  }
  const shape = header.dims.slice(1, 1 + header.dims[0]);
  if (shape.length < 2 || shape.length > 4 || shape.some((edge) => !(edge > 0))) {
    throw new Refusal(`its shape is (${shape.join(", ")}): save a volume for each time point`);
  }
  const size = [...shape, 1].slice(0, 3);
  const channels = shape[3] ?? 1;
  const count = size[0] * size[1] * size[2] * channels;
  const [method, width] = reader;
  if (bytes.byteLength < header.vox_offset + count * width) {
    throw new Refusal("it ends before its last voxel: copy it again");
  }
  const slope = Number.isFinite(header.scl_slope) && header.scl_slope !== 0 ? header.scl_slope : 1;
  const inter = Number.isFinite(header.scl_inter) && header.scl_slope !== 0 ? header.scl_inter : 0;
  const view = new DataView(bytes, header.vox_offset);
  const values = new Float32Array(count);
  for (let index = 0; index < count; index++) {
    values[index] = Number(view[method](index * width, header.littleEndian)) * slope + inter;
  }
  return { values, size, channels, affine: placement(header, size), header, axes: shape.length };
}

/** From voxels to mm, as nibabel chooses among sform, qform and spacing, and MONAI mends it. */
function placement(header, size) {
  const spacing = header.pixDims.slice(1, 4).map((edge, axis) => (size[axis] > 1 ? edge : edge || 1));
  if (spacing.some((edge) => !(edge > 0 && Number.isFinite(edge)))) {
    throw new Refusal(`its voxels measure ${spacing.join(", ")} mm (pixdim): repair the header`);
  }
  const turned = fromQuaternion(header, spacing);
  let affine = [
    [-spacing[0], 0, 0, ((size[0] - 1) / 2) * spacing[0]],
    [0, spacing[1], 0, (-(size[1] - 1) / 2) * spacing[1]],
    [0, 0, spacing[2], (-(size[2] - 1) / 2) * spacing[2]],
  ];
  if (header.sform_code > 0) {
    affine = header.affine.slice(0, 3).map((row) => [...row]);
    const lengths = columnLengths(affine);
    const agrees = lengths.every(
      (length, axis) => Math.abs(length - spacing[axis]) <= 1e-8 + TOLERANCE * length,
    );
    if (!agrees) {
      if (!sameDirections(affine, turned)) {
        throw new Refusal(
          "its spacing (pixdim) and its sform disagree, and its qform points elsewhere: repair it",
        );
      }
      affine = turned;
    }
  } else if (header.qform_code > 0) {
    affine = turned;
  }
  const lengths = columnLengths(affine);
  const volume = lengths.reduce((product, length) => product * length, 1);
  if (!(Math.abs(determinant(affine)) > 1e-6 * volume)) {
    throw new Refusal("its affine says not where it lies (sform or qform): repair the header");
  }
  return affine;
}

/** The affine of a header's quaternion. */
function fromQuaternion(header, spacing) {
  const { quatern_b: b, quatern_c: c, quatern_d: d } = header;
  const a = Math.sqrt(Math.max(0, 1 - b * b - c * c - d * d));
  const flip = header.pixDims[0] < 0 ? -1 : 1;
  const rotation = [
    [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
    [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
    [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
  ];
  const scale = [spacing[0], spacing[1], spacing[2] * flip];
  const offset = [header.qoffset_x, header.qoffset_y, header.qoffset_z];
  return rotation.map((row, axis) => [...row.map((value, k) => value * scale[k]), offset[axis]]);
}

/** Lengths of the first three columns, mm. */
export function columnLengths(affine) {
  return [0, 1, 2].map((k) => Math.hypot(affine[0][k], affine[1][k], affine[2][k]));
}

/** Of the first three columns. */
export function determinant(m) {
  return (
    m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) -
    m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0]) +
    m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0])
  );
}

function sameDirections(left, right) {
  const [a, b] = [columnLengths(left), columnLengths(right)];
  return [0, 1, 2].every((row) =>
    [0, 1, 2].every((k) => Math.abs(left[row][k] / a[k] - right[row][k] / b[k]) < 1e-3),
  );
}

/**
 * A label as a NIfTI file that lies where its image lies.
 * @param {Uint8Array} label in the file's order
 * @param {{size: number[], header: object, axes: number}} image what readNifti gave
 * @returns {Uint8Array}
 */
export function writeNifti(label, image) {
  const { header } = image;
  const bytes = new Uint8Array(352 + label.length);
  const view = new DataView(bytes.buffer);
  const axes = Math.min(image.axes, 3);
  view.setInt32(0, 348, true);
  [axes, ...image.size, 1, 1, 1, 1].forEach((edge, k) => view.setInt16(40 + 2 * k, edge, true));
  view.setInt16(70, 2, true); // unsigned bytes
  view.setInt16(72, 8, true);
  const spacing = header.pixDims.slice(0, 4);
  [...spacing, 1, 1, 1, 1].forEach((edge, k) => view.setFloat32(76 + 4 * k, edge, true));
  view.setFloat32(108, 352, true);
  view.setFloat32(112, 1, true);
  view.setUint8(123, header.xyzt_units);
  view.setInt16(252, header.qform_code, true);
  view.setInt16(254, header.sform_code, true);
  const names = ["quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"];
  names.forEach((name, k) => view.setFloat32(256 + 4 * k, header[name], true));
  if (header.sform_code > 0) {
    header.affine
      .slice(0, 3)
      .flat()
      .forEach((value, k) => view.setFloat32(280 + 4 * k, value, true));
  }
  bytes.set([0x6e, 0x2b, 0x31, 0], 344); // n+1
  bytes.set(label, 352);
  return bytes;
}
