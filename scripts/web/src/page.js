// The page: takes files, lets the worker label them, and shows what came out.
import { MULTIPLANAR_TYPE, NVImage, Niivue } from "@niivue/niivue";
import workerSource from "worker:./worker.js";

const form = JSON.parse(document.getElementById("form").textContent);
const find = (id) => document.getElementById(id);
const COLORS = [
  [255, 196, 0], [0, 158, 255], [240, 75, 60], [40, 190, 90], [190, 110, 255], [255, 130, 30],
  [0, 200, 200], [255, 110, 180], [150, 180, 20], [140, 140, 255], [200, 140, 90], [120, 210, 160],
]; // prettier-ignore
const colorOf = (index) => COLORS[(index - 1) % COLORS.length];
const number = new Intl.NumberFormat("en-US", { maximumFractionDigits: 2 });

let worker = null;
let request = 0;
let shown = null;
let volumeFiles = [];
let viewer = null;

async function start() {
  say("Loading the network ...");
  try {
    const [wasm, model] = await Promise.all([part("runtime"), part("model")]);
    worker = new Worker(URL.createObjectURL(new Blob([workerSource], { type: "text/javascript" })));
    worker.onmessage = ({ data }) => answers[data.kind](data);
    worker.onerror = (event) => {
      event.preventDefault();
      fail(`The page cannot run here (${event.message || "its worker did not start"}).`);
    };
    worker.postMessage({ action: "start", wasm, model, form });
  } catch (error) {
    fail(
      location.protocol === "file:"
        ? "Opened from disk, a page of several files may not read them: serve its folder, or make " +
            "it with --single_file."
        : `A file of this page is missing (${error.message}): copy its whole folder.`,
    );
  }
}

/** A part of the page: within it, or beside it. */
async function part(name) {
  const inside = find(`part-${name}`);
  if (inside) return Uint8Array.from(atob(inside.textContent.trim()), (c) => c.charCodeAt(0)).buffer;
  const file = { runtime: "runtime.wasm", model: "model.onnx" }[name];
  const answer = await fetch(file);
  if (!answer.ok) throw new Error(`${file}: ${answer.status}`);
  return answer.arrayBuffer();
}

const answers = {
  ready() {
    find("choose").disabled = false;
    document.body.dataset.state = "ready";
    say("Ready.");
  },
  error({ message, id }) {
    if (id === undefined || id === request) fail(message);
  },
  progress({ id, done, all }) {
    if (id === request && all > 1) say(`Labeling: part ${done + 1} of ${all} ...`);
  },
  async label(answer) {
    if (answer.id !== request) return;
    try {
      await show(answer);
    } catch (error) {
      fail(`The label is there, but cannot be shown (${error.message}).`);
    }
  },
};

async function open(files) {
  if (!files.length || worker === null || find("choose").disabled) return;
  request += 1;
  const id = request;
  find("problem").hidden = true;
  document.body.dataset.state = "working";
  say(`Reading ${files.map((file) => file.name).join(", ")} ...`);
  volumeFiles = files;
  try {
    const read = await Promise.all(
      files.map(async (file) => ({ name: file.name, buffer: await file.arrayBuffer() })),
    );
    worker.postMessage({ action: "label", id, files: read });
  } catch {
    fail(`${files[0].name} cannot be read: is it a folder, or gone?`);
  }
}

function say(text) {
  find("status").textContent = text;
}

function fail(message) {
  document.body.dataset.state = "failed";
  find("problem").textContent = message;
  find("problem").hidden = false;
  say("");
}

async function show(answer) {
  shown = answer;
  find("result").hidden = false;
  find("empty").hidden = true;
  find("image-2d").hidden = answer.isVolume;
  find("stage").hidden = !answer.isVolume;
  find("keys").hidden = !answer.isVolume;
  const name = volumeFiles.map((file) => file.name).join(", ");
  find("name").textContent = name;
  const text = `${name}: label in color over the image`;
  for (const id of ["image-2d", "image-3d"]) find(id).setAttribute("aria-label", text);
  listClasses(answer);
  if (answer.isVolume) await showVolume(answer);
  else paint();
  say(
    `Labeled in ${duration(answer.totalMs)}, of which the network took ${duration(answer.networkMs)}.`,
  );
  document.body.dataset.state = "done";
}

const duration = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${number.format(ms / 1000)} s`);

function listClasses({ counts, voxelMl }) {
  const isPhysical = voxelMl !== null;
  find("amount").textContent = isPhysical ? "Volume, ml" : "Area, pixels";
  const rows = form.labels.slice(1).map((name, index) => {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    const chip = document.createElement("span");
    chip.className = "chip";
    chip.style.backgroundColor = `rgb(${colorOf(index + 1).join(" ")})`;
    head.append(chip, name);
    const cell = document.createElement("td");
    const count = counts[index + 1];
    cell.textContent = isPhysical ? (count * voxelMl).toFixed(3) : number.format(count);
    row.append(head, cell);
    return row;
  });
  find("classes").replaceChildren(...rows);
}

const opacity = () => (find("visible").checked ? Number(find("opacity").value) / 100 : 0);

/** A 2D image with its label, pixel by pixel. */
function paint() {
  const [width, height] = shown.size;
  const canvas = find("image-2d");
  canvas.width = width;
  canvas.height = height;
  const pixels = new Uint8ClampedArray(shown.preview);
  const share = opacity();
  shown.label.forEach((value, index) => {
    if (value === 0) return;
    const color = colorOf(value);
    for (let c = 0; c < 3; c++) {
      const at = 4 * index + c;
      pixels[at] = pixels[at] * (1 - share) + color[c] * share;
    }
  });
  canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
}

/** Three planes of a volume, and the label over them. */
async function showVolume(answer) {
  if (viewer === null) {
    viewer = new Niivue({
      backColor: [0, 0, 0, 1],
      crosshairWidth: 0.4,
      multiplanarLayout: MULTIPLANAR_TYPE.GRID,
      // The patient's right and front on the left, as radiologists look, and as segment draws.
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      dragAndDropEnabled: false,
      loadingText: "",
    });
    await viewer.attachToCanvas(find("image-3d"));
    viewer.setSliceType(viewer.sliceTypeMultiplanar);
  }
  while (viewer.volumes.length) viewer.removeVolume(viewer.volumes[viewer.volumes.length - 1]);
  const file = [...volumeFiles].sort((a, b) => (a.name < b.name ? -1 : 1))[0];
  viewer.addVolume(await NVImage.loadFromFile({ file, name: file.name }));
  const { name, bytes } = answer.file;
  const label = await NVImage.loadFromFile({ file: new File([bytes], name), name });
  const names = form.labels;
  const shades = (c) => names.map((_, index) => (index ? colorOf(index)[c] : 0));
  label.setColormapLabel({
    R: shades(0), G: shades(1), B: shades(2),
    A: names.map((_, index) => (index ? 255 : 0)),
    I: names.map((_, index) => index),
    labels: names.map(() => ""),
  }); // prettier-ignore
  viewer.addVolume(label);
  viewer.setOpacity(1, opacity());
  const isFound = answer.counts.slice(1).some((count) => count > 0);
  if (isFound) viewer.scene.crosshairPos = centerOf(answer);
  viewer.drawScene();
}

/** Where the label is, so that it is seen at once: its center of mass, as a share of each axis. */
function centerOf({ label, size }) {
  const sums = [0, 0, 0];
  let count = 0;
  let index = 0;
  for (let z = 0; z < size[2]; z++)
    for (let y = 0; y < size[1]; y++)
      for (let x = 0; x < size[0]; x++) {
        if (label[index++] === 0) continue;
        count += 1;
        [x, y, z].forEach((value, axis) => (sums[axis] += value));
      }
  const voxel = sums.map((sum) => Math.round(sum / count));
  const rows = viewer.volumes[0].hdr.affine.slice(0, 3);
  const place = rows.map((row) => voxel.reduce((sum, at, k) => sum + row[k] * at, row[3]));
  return viewer.mm2frac(place);
}

function redraw() {
  find("opacity-value").textContent = `${find("opacity").value} %`;
  if (shown === null) return;
  if (!shown.isVolume) paint();
  else if (viewer !== null && viewer.volumes.length > 1) viewer.setOpacity(1, opacity());
}

function download() {
  if (shown === null) return;
  const { name, bytes } = shown.file;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes]));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// Along (x, y, z) of RAS: the patient's right is on the left.
const STEPS = {
  ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowDown: [0, -1, 0], ArrowUp: [0, 1, 0],
  PageDown: [0, 0, -1], PageUp: [0, 0, 1],
}; // prettier-ignore

function listen() {
  const input = find("file");
  find("choose").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    open([...input.files]);
    input.value = "";
  });
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      document.body.classList.add("dragging");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) document.body.classList.remove("dragging");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    open([...event.dataTransfer.files]);
  });
  find("opacity").addEventListener("input", redraw);
  find("visible").addEventListener("change", redraw);
  find("download").addEventListener("click", download);
  find("image-3d").addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step || viewer === null) return;
    event.preventDefault();
    event.stopPropagation();
    viewer.moveCrosshairInVox(...step);
  });
}

listen();
start();
