"use strict";

// A mask has one byte for each patch, in row-major grid order: 1 = hidden. A model that hides none has none.
// Pixels are planar, (C, H, W), as the model takes them.

const SHOWN_CLASSES = 10;
const element = (id) => document.getElementById(id);

let settings; // model.json
let sessions = {}; // "reconstruction" and, if there is one, "classifier"
let pixels; // Uint8Array (C * H * W): the image
let mask; // Uint8Array (N), or undefined
let patches = []; // the button of each patch
let busy = false;
let stale = false;

// ---- messages

function say(text) {
  element("status").className = "";
  element("status").setAttribute("role", "status");
  element("message").textContent = text;
}

function fail(text) {
  element("status").className = "error";
  element("status").setAttribute("role", "alert");
  element("message").textContent = text;
  element("progress").hidden = true;
}

// ---- images

/** Crop an image to the model's shape and scale it to the model's size: Uint8Array (C * H * W). */
function toPixels(image) {
  const [height, width] = settings.image_size;
  const scale = Math.max(width / image.width, height / image.height);
  const part = { width: width / scale, height: height / scale };
  let source = document.createElement("canvas");
  source.width = Math.max(width, Math.round(part.width));
  source.height = Math.max(height, Math.round(part.height));
  place(image, source, (image.width - part.width) / 2, (image.height - part.height) / 2, part.width, part.height);
  // By halves: a canvas looks at few pixels around each target, so one large step would leave jagged edges.
  while (source.width > width || source.height > height) {
    const half = document.createElement("canvas");
    half.width = Math.max(width, Math.ceil(source.width / 2));
    half.height = Math.max(height, Math.ceil(source.height / 2));
    place(source, half, 0, 0, source.width, source.height);
    source = half;
  }
  const rgba = source.getContext("2d").getImageData(0, 0, width, height).data;
  const count = width * height;
  const planar = new Uint8Array(settings.in_channels * count);
  for (let i = 0; i < count; i++) {
    const [r, g, b] = rgba.subarray(4 * i, 4 * i + 3);
    if (settings.in_channels === 1) {
      planar[i] = (19595 * r + 38470 * g + 7471 * b + 32768) >> 16; // the luma that Pillow computes
    } else {
      planar[i] = r;
      planar[count + i] = g;
      planar[2 * count + i] = b;
    }
  }
  return planar;
}

function place(image, canvas, left, top, width, height) {
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // where the image is transparent
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, left, top, width, height, 0, 0, canvas.width, canvas.height);
}

/** Show planar pixels, 0 to 255, on a canvas. */
function draw(canvas, planar) {
  const [height, width] = settings.image_size;
  const count = width * height;
  const shown = new ImageData(width, height);
  for (let i = 0; i < count; i++) {
    for (let channel = 0; channel < 3; channel++) {
      shown.data[4 * i + channel] = planar[settings.in_channels === 1 ? i : channel * count + i];
    }
    shown.data[4 * i + 3] = 255;
  }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(shown, 0, 0);
}

function chooseImage(image, tile) {
  pixels = toPixels(image);
  draw(element("original"), pixels);
  draw(element("visible"), pixels);
  for (const other of document.querySelectorAll(".tile")) {
    if (other.matches("button")) other.setAttribute("aria-pressed", String(other === tile));
  }
  const own = tile.matches(".upload");
  if (own) {
    draw(element("uploaded"), pixels);
    element("uploaded").hidden = false;
  }
  tile.parentElement.querySelector(".upload").classList.toggle("chosen", own);
  update();
}

async function chooseFile(file) {
  if (!file || !settings) return;
  try {
    chooseImage(await createImageBitmap(file), document.querySelector(".upload"));
  } catch {
    fail(`${file.name} is not an image that this browser can read. Choose a PNG, JPEG or WebP file.`);
  }
}

async function addSamples() {
  for (const sample of settings.samples) {
    const image = new Image();
    image.src = sample.file;
    image.alt = sample.name;
    const tile = document.createElement("button");
    tile.type = "button";
    tile.className = "tile";
    tile.title = sample.name;
    tile.setAttribute("aria-pressed", "false");
    tile.append(image);
    // A bitmap has the file's own size; an <img> answers with the size it is laid out at.
    tile.addEventListener("click", async () => chooseImage(await createImageBitmap(image), tile));
    element("samples").insertBefore(tile, document.querySelector(".upload"));
  }
  const first = document.querySelector(".tile img");
  if (!first) return;
  await first.decode();
  chooseImage(await createImageBitmap(first), first.parentElement);
}

// ---- the mask

function hide(patch, hidden) {
  if (Boolean(mask[patch]) === hidden) return;
  if (hidden && countHidden() === mask.length - 1) {
    say("One patch has to stay visible.");
    return;
  }
  mask[patch] = hidden ? 1 : 0;
  showMask();
}

function countHidden() {
  return mask.reduce((sum, hidden) => sum + hidden, 0);
}

function showMask() {
  const hidden = countHidden();
  const percent = `${Math.round((100 * hidden) / mask.length)} %`;
  patches.forEach((button, patch) => button.setAttribute("aria-pressed", String(Boolean(mask[patch]))));
  element("ratio").value = hidden;
  element("ratio").setAttribute("aria-valuetext", `${hidden} of ${mask.length} patches, ${percent}`);
  element("percent").textContent = percent;
  update();
}

/** Hide or show patches chosen at random until `count` are hidden; the others stay as they are. */
function hideUntil(count) {
  const change = count > countHidden() ? 1 : 0;
  const candidates = [...mask.keys()].filter((patch) => mask[patch] !== change);
  for (let left = Math.abs(count - countHidden()); left > 0; left--) {
    const [patch] = candidates.splice(Math.floor(Math.random() * candidates.length), 1);
    mask[patch] = change;
  }
  showMask();
}

function addMask() {
  mask = new Uint8Array(settings.grid_size[0] * settings.grid_size[1]);
  element("ratio").max = mask.length - 1;
  addPatches();
  hideUntil(Math.round(settings.mask_ratio * mask.length));
}

function addPatches() {
  const [rows, columns] = settings.grid_size;
  const grid = element("patches");
  grid.style.setProperty("--rows", rows);
  grid.style.setProperty("--columns", columns);
  for (let patch = 0; patch < rows * columns; patch++) {
    const button = document.createElement("button");
    button.type = "button";
    button.tabIndex = patch ? -1 : 0; // Tab stops once at the grid, arrows move inside it
    button.setAttribute("aria-label", `row ${Math.floor(patch / columns) + 1}, column ${(patch % columns) + 1}`);
    if (patch === columns - 1) button.classList.add("top-right");
    if (patch === (rows - 1) * columns) button.classList.add("bottom-left");
    button.addEventListener("focus", () => {
      for (const other of patches) other.tabIndex = other === button ? 0 : -1;
    });
    patches.push(button);
  }
  grid.append(...patches);

  let brush = null; // what a stroke does, by the patch where it began; null between strokes
  const patchAt = (event) => {
    const box = grid.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    return row < 0 || row >= rows || column < 0 || column >= columns ? null : row * columns + column;
  };
  grid.addEventListener("pointerdown", (event) => {
    const patch = patchAt(event);
    if (event.button !== 0 || patch === null) return;
    grid.setPointerCapture(event.pointerId);
    brush = !mask[patch];
    hide(patch, brush);
  });
  grid.addEventListener("pointermove", (event) => {
    if (brush === null) return;
    const between = event.getCoalescedEvents ? event.getCoalescedEvents() : []; // a fast finger skips patches
    for (const point of [...between, event]) {
      const patch = patchAt(point);
      if (patch !== null) hide(patch, brush);
    }
  });
  for (const end of ["pointerup", "pointercancel"]) grid.addEventListener(end, () => (brush = null));
  grid.addEventListener("click", (event) => {
    const patch = patches.indexOf(event.target);
    if (event.detail === 0 && patch >= 0) hide(patch, !mask[patch]); // from the keyboard; the pointer was served above
  });
  grid.addEventListener("keydown", (event) => {
    const patch = patches.indexOf(event.target);
    const column = patch % columns;
    const next = {
      ArrowUp: patch - columns,
      ArrowDown: patch + columns,
      ArrowLeft: column > 0 ? patch - 1 : -1,
      ArrowRight: column < columns - 1 ? patch + 1 : -1,
      Home: patch - column,
      End: patch - column + columns - 1,
    }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    if (patches[next]) patches[next].focus();
  });
}

// ---- the model

/** Run the model on the latest image and mask; what changes while it runs is computed once, afterwards. */
async function update() {
  if (!sessions.reconstruction || !pixels) return;
  stale = true;
  if (busy) return;
  busy = true;
  try {
    while (stale) {
      stale = false;
      // The run blocks this thread, so the browser draws the new mask first.
      await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
      await reconstruct();
    }
  } catch (error) {
    fail(`The model could not run: ${error.message}`);
  } finally {
    busy = false;
  }
}

async function reconstruct() {
  const shape = [1, settings.in_channels, ...settings.image_size];
  const started = performance.now();
  const inputs = { images: new ort.Tensor("uint8", pixels, shape) };
  if (mask) inputs.mask = new ort.Tensor("bool", mask.slice(), [1, mask.length]);
  const { reconstruction } = await sessions.reconstruction.run(inputs);
  const milliseconds = Math.round(performance.now() - started);
  const painted = Uint8Array.from(reconstruction.data, (value) => Math.round(255 * value));
  draw(element("reconstruction"), painted);
  say(`${mask ? `${countHidden()} of ${mask.length} patches hidden · ` : ""}${milliseconds} ms`);
  if (!sessions.classifier) return;
  const both = new Uint8Array([...pixels, ...painted]);
  const { probabilities } = await sessions.classifier.run({ images: new ort.Tensor("uint8", both, [2, ...shape.slice(1)]) });
  const count = settings.classes.length;
  showGuesses(probabilities.data.subarray(0, count), probabilities.data.subarray(count));
}

function addGuesses() {
  // The column of names is as wide as the longest one, which may be shown in bold.
  const pen = document.createElement("canvas").getContext("2d");
  const style = getComputedStyle(element("classes"));
  pen.font = `600 ${style.fontSize} ${style.fontFamily}`;
  const longest = Math.ceil(Math.max(...settings.classes.map((name) => pen.measureText(name).width)));
  element("guesses").style.setProperty("--longest", `${longest}px`);
  const rows = Math.min(SHOWN_CLASSES, settings.classes.length);
  for (let row = 0; row < rows; row++) {
    const line = document.createElement("tr");
    line.innerHTML = `<th scope="row"></th>${'<td><div class="guess"><div class="track"><div></div></div><span>–</span></div></td>'.repeat(2)}`;
    line.querySelector("th").textContent = settings.classes[row];
    element("classes").append(line);
  }
  element("guesses").hidden = false;
}

function showGuesses(original, reconstruction) {
  // Few classes keep their places; of many, the likeliest are shown.
  let order = [...reconstruction.keys()];
  if (order.length > SHOWN_CLASSES) order.sort((a, b) => reconstruction[b] - reconstruction[a]);
  order = order.slice(0, SHOWN_CLASSES);
  const likeliest = reconstruction.indexOf(Math.max(...reconstruction));
  order.forEach((index, row) => {
    const line = element("classes").children[row];
    line.classList.toggle("likely", index === likeliest);
    line.querySelector("th").textContent = settings.classes[index];
    [original, reconstruction].forEach((probabilities, column) => {
      const cell = line.querySelectorAll("td")[column];
      cell.querySelector(".track div").style.transform = `scaleX(${probabilities[index]})`;
      cell.querySelector("span").textContent = `${Math.round(100 * probabilities[index])} %`;
    });
  });
}

async function get(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: ${response.status} ${response.statusText}`);
  return response;
}

async function loadSession(name, what) {
  const response = await get(`${name}.onnx`);
  const total = Number(response.headers.get("Content-Length"));
  const reader = response.body.getReader();
  const chunks = [];
  let received = 0;
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    chunks.push(value);
    received += value.length;
    if (total) element("progress").value = received / total;
    element("message").textContent = `Loading ${what}, ${Math.round(received / 1e6)} MB`;
  }
  const file = new Uint8Array(await new Blob(chunks).arrayBuffer());
  sessions[name] = await ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
}

async function start() {
  if (location.protocol === "file:") {
    throw new Error("browsers load models only from a server. Run: python -m http.server");
  }
  settings = await (await get("model.json")).json();
  const [height, width] = settings.image_size;
  document.documentElement.style.setProperty("--shape", width / height);
  document.title = element("title").textContent = settings.title;
  element("lead").textContent = settings.lead;
  if (settings.classes) addGuesses();
  if (settings.grid_size) addMask();
  else element("paint").hidden = element("controls").hidden = true;
  await addSamples();

  ort.env.wasm.numThreads = 1; // more would need a server that isolates the page from other sites
  ort.env.wasm.wasmPaths = new URL("onnxruntime/", location.href).href;
  await loadSession("reconstruction", "the model");
  element("panels").inert = element("controls").inert = false;
  await update();
  if (settings.classes) {
    element("progress").value = 0;
    await loadSession("classifier", "the classifier");
    await update();
  }
  element("progress").hidden = true;
  document.body.dataset.ready = "";
}

element("ratio").addEventListener("input", (event) => hideUntil(Number(event.target.value)));
element("random").addEventListener("click", () => {
  const count = countHidden() || Math.round(settings.mask_ratio * mask.length);
  mask.fill(0);
  hideUntil(count);
});
element("invert").addEventListener("click", () => {
  if (!countHidden()) return say("One patch has to stay visible.");
  mask.forEach((hidden, patch) => (mask[patch] = 1 - hidden));
  showMask();
});
element("clear").addEventListener("click", () => hideUntil(0));
element("upload").addEventListener("change", (event) => {
  chooseFile(event.target.files[0]);
  event.target.value = ""; // so that the same file can be chosen again
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  chooseFile(event.dataTransfer.files[0]);
});

start().catch((error) => fail(`The page could not start: ${error.message}`));
