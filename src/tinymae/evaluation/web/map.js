"use strict";
// A map of images. Points are painted pixel by pixel into one ImageData: that is quick with 50,000 of them on a phone,
// and needs no WebGL.

const data = JSON.parse(document.getElementById("data").textContent);
const sheets = [...document.querySelectorAll("script.sheet")];
const $ = (id) => document.getElementById(id);
const canvas = $("points"), paper = canvas.getContext("2d");
const overlay = $("drawn"), ink = overlay.getContext("2d");
const count = data.names.length;
const THUMBNAILS = 250; // so many points or fewer in view are shown as their images
const TAP = 6, REACH = 14; // CSS pixels: a drag shorter than this is a tap; how far a pointer picks
const DIM = 0.12;

// ---- what the page was given

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const places = new Uint16Array(bytes(data.places).buffer); // x, y, x, y, ...; the file is little-endian like every phone
const xs = new Float32Array(count), ys = new Float32Array(count);
for (let i = 0; i < count; i++) {
  xs[i] = places[2 * i] / 65535;
  ys[i] = places[2 * i + 1] / 65535;
}
const lowered = data.names.map((name) => name.toLowerCase());
const colourings = data.colourings.map((c) => ({ ...c, values: new Uint16Array(bytes(c.values).buffer) }));

function hue(number, total) { // neighbours in the legend differ in hue and in lightness
  const angle = total <= 12 ? (360 * number) / total : (number * 137.508) % 360;
  return [angle, 65, [52, 42, 62][number % 3]];
}

function rgb([h, s, l]) {
  const a = (s * Math.min(l, 100 - l)) / 10000;
  const part = (n) => {
    const k = (n + h / 30) % 12;
    return Math.round(255 * (l / 100 - a * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [part(0), part(8), part(4)];
}

// ---- what is shown

let colouring, palette, hidden;
let matches = null; // of a search: Uint8Array, 1 = found
let chosen = null; // by lasso: Uint8Array
let view = { scale: 1, x: 0, y: 0 }; // a place p of the unit square is at p * scale + offset, in CSS pixels
let size = { width: 0, height: 0, ratio: 1 };
let pixels, words, stale = false, shown = -1, current = -1;

const fit = () => {
  const scale = 0.92 * Math.min(size.width, size.height);
  view = { scale, x: (size.width - scale) / 2, y: (size.height - scale) / 2 };
};

function resize() {
  const { clientWidth: width, clientHeight: height } = $("stage"), ratio = Math.min(window.devicePixelRatio || 1, 2);
  const before = size;
  size = { width, height, ratio };
  for (const each of [canvas, overlay]) {
    each.width = Math.max(1, Math.round(width * ratio));
    each.height = Math.max(1, Math.round(height * ratio));
  }
  pixels = paper.createImageData(canvas.width, canvas.height);
  words = new Uint32Array(pixels.data.buffer);
  if (!before.width) fit();
  else {
    view.x += (size.width - before.width) / 2;
    view.y += (size.height - before.height) / 2;
  }
  redraw();
}

const redraw = () => {
  if (!stale) requestAnimationFrame(draw);
  stale = true;
};

const visible = (i) => !hidden[colouring.values[i]];
const bright = (i) => visible(i) && (!matches || matches[i] === 1) && (!chosen || chosen[i] === 1);

function disc(radius) { // offsets of its pixels from the middle, row by row
  const offsets = [], r = Math.max(0, Math.floor(radius));
  for (let y = -r; y <= r; y++)
    for (let x = -r; x <= r; x++) if (x * x + y * y <= radius * radius + 0.5) offsets.push([x, y]);
  return offsets;
}

function draw() {
  stale = false;
  const { ratio } = size, width = canvas.width, height = canvas.height;
  const zoom = view.scale / Math.min(size.width, size.height);
  const radius = ratio * Math.min(6, (count > 20000 ? 1 : count > 5000 ? 1.5 : 3) * Math.max(1, Math.sqrt(zoom)));
  const offsets = disc(radius), margin = Math.ceil(radius) + 1;
  words.fill(0);
  const dim = palette.map(([r, g, b]) => (Math.round(255 * DIM) << 24) | (b << 16) | (g << 8) | r);
  const full = palette.map(([r, g, b]) => (255 << 24) | (b << 16) | (g << 8) | r);
  const some = matches || chosen, inView = [];
  for (const pass of some ? [false, true] : [true]) { // what was not asked for lies below
    for (let i = 0; i < count; i++) {
      const is = bright(i);
      if (is !== pass || !visible(i)) continue;
      const x = Math.round((xs[i] * view.scale + view.x) * ratio), y = Math.round((ys[i] * view.scale + view.y) * ratio);
      if (x < 0 || y < 0 || x >= width || y >= height) continue;
      if (is && inView.length <= THUMBNAILS) inView.push(i);
      const word = is ? full[colouring.values[i]] : dim[colouring.values[i]];
      const whole = x >= margin && y >= margin && x < width - margin && y < height - margin;
      for (let k = 0; k < offsets.length; k++) {
        const px = x + offsets[k][0], py = y + offsets[k][1];
        if (whole || (px >= 0 && py >= 0 && px < width && py < height)) words[py * width + px] = word;
      }
    }
  }
  paper.putImageData(pixels, 0, 0);
  if (inView.length <= THUMBNAILS && zoom > 1.5) drawThumbnails(inView);
  drawOverlay();
  document.body.dataset.ready = "yes";
}

function drawThumbnails(indices) {
  const side = Math.min(64, Math.max(20, 0.5 * Math.sqrt((size.width * size.height) / Math.max(indices.length, 1)))) * size.ratio;
  paper.imageSmoothingEnabled = side < data.side;
  for (const i of indices) {
    const x = (xs[i] * view.scale + view.x) * size.ratio - side / 2, y = (ys[i] * view.scale + view.y) * size.ratio - side / 2;
    paper.fillStyle = `rgb(${palette[colouring.values[i]]})`;
    paper.fillRect(x - 2, y - 2, side + 4, side + 4);
    paint(paper, i, x, y, side, redraw);
  }
}

// ---- images, cut out of sheets that are decoded when they are first looked at

const decoded = new Map(); // the last few, as 50,000 images decoded at once would not fit a phone
function sheetOf(i, then) {
  const number = Math.floor(i / data.per_sheet);
  let image = decoded.get(number);
  decoded.delete(number);
  if (!image) {
    image = new Image();
    image.src = `data:image/${data.format};base64,${sheets[number].textContent}`;
  }
  decoded.set(number, image);
  if (decoded.size > 48) decoded.delete(decoded.keys().next().value);
  if (!image.complete) image.addEventListener("load", then, { once: true });
  return image.complete && image.naturalWidth ? image : null;
}

function paint(context, i, x, y, side, then) {
  const image = sheetOf(i, then), place = i % data.per_sheet;
  if (!image) return;
  const sx = (place % data.columns) * data.side, sy = Math.floor(place / data.columns) * data.side;
  context.drawImage(image, sx, sy, data.side, data.side, x, y, side, side);
}

// ---- the card of one image

function show(i, x, y) {
  const card = $("card");
  current = i;
  canvas.classList.toggle("pointing", i >= 0);
  card.hidden = i < 0;
  drawOverlay();
  if (i < 0) {
    shown = -1;
    return;
  }
  const picture = card.querySelector("canvas"), fill = () => {
    if (current === i) paint(picture.getContext("2d"), i, 0, 0, data.side, fill);
  };
  if (shown !== i) {
    picture.getContext("2d").clearRect(0, 0, data.side, data.side);
    const caption = card.querySelector("figcaption");
    caption.textContent = data.names[i];
    for (const each of colourings) {
      const line = document.createElement("span");
      line.textContent = `${each.name}: ${each.labels[each.values[i]]}`;
      caption.append(line);
    }
    shown = i;
    fill();
  }
  const box = card.getBoundingClientRect();
  card.style.left = `${Math.max(8, x + 16 + box.width > size.width ? x - 16 - box.width : x + 16)}px`;
  card.style.top = `${Math.max(8, Math.min(y + 16, size.height - box.height - 8))}px`;
}

function nearest(x, y) {
  let best = -1, least = REACH * REACH;
  for (let i = 0; i < count; i++) {
    const dx = xs[i] * view.scale + view.x - x, dy = ys[i] * view.scale + view.y - y, d = dx * dx + dy * dy;
    if (d < least && bright(i)) {
      least = d;
      best = i;
    }
  }
  return best;
}

function drawOverlay() {
  ink.setTransform(size.ratio, 0, 0, size.ratio, 0, 0);
  ink.clearRect(0, 0, size.width, size.height);
  ink.strokeStyle = getComputedStyle(document.body).color;
  ink.lineWidth = 2;
  if (current >= 0) {
    ink.beginPath();
    ink.arc(xs[current] * view.scale + view.x, ys[current] * view.scale + view.y, 7, 0, 7);
    ink.stroke();
  }
  if (outline.length) {
    ink.beginPath();
    for (const [x, y] of outline) ink.lineTo(x, y);
    ink.closePath();
    ink.fillStyle = "rgb(127 127 127 / 20%)";
    ink.fill();
    ink.stroke();
  }
}

// ---- moving, zooming, drawing around

const pointers = new Map();
let outline = [], moved = 0, drawing = false, spread = 0;

const at = (event) => {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};

function zoomBy(factor, x = size.width / 2, y = size.height / 2) {
  const base = Math.min(size.width, size.height);
  const scale = Math.min(400 * base, Math.max(0.3 * base, view.scale * factor));
  const change = scale / view.scale;
  view = { scale, x: x - (x - view.x) * change, y: y - (y - view.y) * change };
  redraw();
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, at(event));
  moved = 0;
  drawing = pointers.size === 1 && (event.shiftKey || $("lasso").ariaPressed === "true");
  outline = drawing ? [at(event)] : [];
  spread = 0;
});

canvas.addEventListener("pointermove", (event) => {
  const [x, y] = at(event), before = pointers.get(event.pointerId);
  if (!before) {
    if (event.pointerType === "mouse") show(nearest(x, y), x, y);
    return;
  }
  moved += Math.hypot(x - before[0], y - before[1]);
  pointers.set(event.pointerId, [x, y]);
  if (drawing) {
    outline.push([x, y]);
    drawOverlay();
  } else if (pointers.size === 1) {
    view.x += x - before[0];
    view.y += y - before[1];
    if (moved > TAP) show(-1);
    redraw();
  } else {
    const [[ax, ay], [bx, by]] = [...pointers.values()], apart = Math.hypot(ax - bx, ay - by);
    if (spread) zoomBy(apart / spread, (ax + bx) / 2, (ay + by) / 2);
    spread = apart;
  }
});

for (const name of ["pointerup", "pointercancel"])
  canvas.addEventListener(name, (event) => {
    const [x, y] = at(event), alone = pointers.size === 1;
    pointers.delete(event.pointerId);
    spread = 0;
    if (drawing && outline.length > 2 && moved > TAP) choose(inside(outline));
    else if (name === "pointerup" && alone && moved <= TAP) show(nearest(x, y), x, y);
    drawing = false;
    outline = [];
    drawOverlay();
  });

canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && show(-1));
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), ...at(event));
}, { passive: false });
canvas.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
  if (steps) {
    view.x += steps[0];
    view.y += steps[1];
    event.preventDefault();
    redraw();
  } else if (event.key === "+" || event.key === "=") zoomBy(1.4);
  else if (event.key === "-") zoomBy(1 / 1.4);
});
$("closer").onclick = () => zoomBy(1.6);
$("farther").onclick = () => zoomBy(1 / 1.6);
$("whole").onclick = () => {
  fit();
  redraw();
};

// ---- choosing

function inside(polygon) {
  const found = new Uint8Array(count);
  for (let i = 0; i < count; i++) {
    if (!visible(i) || (matches && !matches[i])) continue;
    const x = xs[i] * view.scale + view.x, y = ys[i] * view.scale + view.y;
    let odd = false;
    for (let a = 0, b = polygon.length - 1; a < polygon.length; b = a++) {
      const [ax, ay] = polygon[a], [bx, by] = polygon[b];
      if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
    }
    if (odd) found[i] = 1;
  }
  return found;
}

function choose(found) {
  const names = found ? data.names.filter((_, i) => found[i]).sort() : [];
  chosen = names.length ? found : null;
  $("chosen").hidden = !chosen;
  $("chosen").querySelector("h2").textContent = `${names.length} chosen`;
  $("chosen").querySelector("textarea").value = names.join("\n");
  setLasso(false);
  redraw();
}

function setLasso(on) {
  $("lasso").ariaPressed = String(on);
  canvas.classList.toggle("lasso", on);
}

$("lasso").onclick = () => setLasso($("lasso").ariaPressed !== "true");
$("clear").onclick = () => choose(null);
$("copy").onclick = async () => {
  const text = $("chosen").querySelector("textarea");
  try {
    await navigator.clipboard.writeText(text.value);
  } catch { // a page opened from a file may not be allowed to
    text.select();
    document.execCommand("copy");
  }
  $("status").textContent = `copied ${text.value.split("\n").length} names`;
};

$("search").oninput = () => {
  const wanted = $("search").value.trim().toLowerCase();
  matches = wanted ? Uint8Array.from(lowered, (name) => name.includes(wanted)) : null;
  const found = matches ? matches.reduce((sum, one) => sum + one, 0) : 0;
  $("status").textContent = wanted ? `${found} of ${count} names match` : "";
  redraw();
};
$("search").onkeydown = (event) => { // Enter goes to the first
  const i = matches ? matches.indexOf(1) : -1;
  if (event.key !== "Enter" || i < 0) return;
  view.x = size.width / 2 - xs[i] * view.scale;
  view.y = size.height / 2 - ys[i] * view.scale;
  redraw();
  show(i, size.width / 2, size.height / 2);
};

// ---- colours

function setColouring(number) {
  colouring = colourings[number];
  palette = colouring.labels.map((label, i) =>
    label === "(no label)" ? [170, 170, 170] : rgb(hue(i, colouring.labels.length)));
  hidden = colouring.labels.map(() => false);
  const numbers = new Uint32Array(palette.length);
  colouring.values.forEach((value) => numbers[value]++);
  $("legend").replaceChildren(...colouring.labels.map((label, i) => {
    const item = document.createElement("li"), button = document.createElement("button");
    const spot = document.createElement("i"), text = document.createElement("span"), number = document.createElement("small");
    spot.style.background = `rgb(${palette[i]})`;
    text.textContent = label;
    number.textContent = numbers[i];
    button.ariaPressed = "true";
    button.append(spot, text, number);
    button.onclick = () => {
      hidden[i] = !hidden[i];
      button.ariaPressed = String(!hidden[i]);
      redraw();
    };
    item.append(button);
    return item;
  }));
  redraw();
}

$("colouring").replaceChildren(...colourings.map((each, i) => new Option(each.name, i)));
$("colouring").onchange = () => setColouring(Number($("colouring").value));
setColouring(0);
resize();
new ResizeObserver(resize).observe($("stage"));
