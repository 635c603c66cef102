// PNG and JPG files as Pillow reads them for the bundle; where a reading would be a guess, refused.
import { decode } from "fast-png";

import { Refusal } from "./refusal.js";

const TURNED = "turns or flips it in some programs and not in others: save it upright";

/**
 * Read a file.
 * @param {ArrayBuffer} buffer its bytes
 * @returns {Promise<{values: Float32Array, size: number[], channels: number}>} channels slowest,
 *   then rows, then columns
 */
export async function readRaster(buffer) {
  const bytes = new Uint8Array(buffer);
  const isPng = bytes[0] === 0x89 && bytes[1] === 0x50;
  if (!isPng && !(bytes[0] === 0xff && bytes[1] === 0xd8)) {
    throw new Refusal("it is neither PNG nor JPG inside: save it as one of them");
  }
  const turn = orientation(isPng ? findChunk(bytes, "eXIf") : findSegment(bytes));
  if (turn >= 2 && turn <= 8) throw new Refusal(`its EXIF orientation (${turn}) ${TURNED}`);
  const { width, height, channels, pixels, step } = isPng ? readPng(bytes) : await readJpg(buffer);
  const count = width * height;
  const values = new Float32Array(count * channels);
  for (let channel = 0; channel < channels; channel++) {
    for (let index = 0; index < count; index++) {
      values[channel * count + index] = pixels[index * step + channel];
    }
  }
  return { values, size: [width, height, 1], channels };
}

function readPng(bytes) {
  const [depth, color] = [bytes[24], bytes[25]];
  if (color === 3) {
    throw new Refusal("its colors are indices into a palette: save it as gray or RGB");
  }
  if (color === 4 || color === 6) {
    throw new Refusal("it has an alpha channel: save it as gray or RGB without transparency");
  }
  if (depth < 8) throw new Refusal(`its pixels have ${depth} bits: save it with 8 or 16`);
  if (depth === 16 && color !== 0) {
    throw new Refusal("its colors have 16 bits: save each channel as a gray file");
  }
  let image;
  try {
    image = decode(bytes, { checkCrc: true });
  } catch (error) {
    throw new Refusal(`it cannot be read (${error.message}): repair it`);
  }
  const { width, height, channels, data } = image;
  return { width, height, channels, pixels: data, step: channels };
}

async function readJpg(buffer) {
  const channels = countComponents(new Uint8Array(buffer));
  if (channels !== 1 && channels !== 3) {
    throw new Refusal(`its pixels have ${channels} components: save it as gray or RGB`);
  }
  let bitmap;
  try {
    // As the numbers stand in the file: without color profiles or turns.
    bitmap = await createImageBitmap(new Blob([buffer], { type: "image/jpeg" }), {
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
    });
  } catch {
    throw new Refusal("it cannot be read: repair it");
  }
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  canvas.drawImage(bitmap, 0, 0);
  return { width, height, channels, pixels: canvas.getImageData(0, 0, width, height).data, step: 4 };
}

/** Markers of a JPG file: each with where its content begins, and how long it is. */
function* segments(bytes) {
  let at = 2;
  while (at + 4 <= bytes.length && bytes[at] === 0xff) {
    const marker = bytes[at + 1];
    const length = bytes[at + 2] * 256 + bytes[at + 3];
    if (marker === 0xda) return;
    yield [marker, at + 4, length - 2];
    at += 2 + length;
  }
}

function countComponents(bytes) {
  for (const [marker, at] of segments(bytes)) {
    const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (isFrame) return bytes[at + 5];
  }
  return 0;
}

function findSegment(bytes) {
  for (const [marker, at, length] of segments(bytes)) {
    const isExif = marker === 0xe1 && String.fromCharCode(...bytes.slice(at, at + 4)) === "Exif";
    if (isExif) return bytes.slice(at + 6, at + length);
  }
  return null;
}

function findChunk(bytes, wanted) {
  const view = new DataView(bytes.buffer);
  let at = 8;
  while (at + 12 <= bytes.length) {
    const length = view.getUint32(at);
    const name = String.fromCharCode(...bytes.slice(at + 4, at + 8));
    if (name === wanted) return bytes.slice(at + 8, at + 8 + length);
    at += 12 + length;
  }
  return null;
}

/** EXIF's number for turns and flips, 1 for upright; damaged ones turn nothing. */
function orientation(exif) {
  if (exif === null || exif.length < 8) return 1;
  const view = new DataView(exif.buffer, exif.byteOffset, exif.length);
  const little = exif[0] === 0x49;
  try {
    const start = view.getUint32(4, little);
    for (let entry = 0; entry < view.getUint16(start, little); entry++) {
      const at = start + 2 + 12 * entry;
      if (view.getUint16(at, little) === 274) return view.getUint16(at + 8, little);
    }
  } catch {
    return 1;
  }
  return 1;
}
