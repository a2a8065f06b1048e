// An .onnx file of `rapidetr export --inputs uint8 --outputs final`, run by ONNX Runtime Web on the CPU (wasm).
// Address: ?model=pico.onnx&picture=street.png&threads=2; only the model has a default.
"use strict";

const COLORS = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442"]; // as in the Python package
const asked = new URLSearchParams(location.search);
const at = (id) => document.getElementById(id);
let network = null; // {session, header, size: [height, width]}
let shown = null; // {picture, found}

// ---- the model: weights, and what the file says of itself

async function load(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address}: ${answer.status} ${answer.statusText}; export a model to this folder first`);
  const bytes = new Uint8Array(await answer.arrayBuffer());
  const header = readHeader(bytes);
  if (header.graph.inputs !== "uint8" || header.graph.outputs !== "final")
    throw new Error(`${address}: export it with --inputs uint8 --outputs final`);
  ort.env.wasm.wasmPaths = new URL("node_modules/onnxruntime-web/dist/", location.href).href;
  // threads need shared memory, which a browser gives only to pages served with COOP and COEP headers
  ort.env.wasm.numThreads = crossOriginIsolated ? Number(asked.get("threads")) || Math.min(4, navigator.hardwareConcurrency) : 1;
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  return { session, header, size: header.graph.size_hw };
}

// The JSON under the metadata key "rapidetr". An .onnx file is a protocol buffer; field 14 of a model holds its metadata.
function readHeader(bytes) {
  const text = new TextDecoder();
  for (const [field, value] of fieldsOf(bytes)) {
    if (field !== 14) continue;
    const entry = new Map(fieldsOf(value));
    if (text.decode(entry.get(1)) === "rapidetr") return JSON.parse(text.decode(entry.get(2)));
  }
  throw new Error("the file holds no rapidetr metadata; export it with rapidetr");
}

function* fieldsOf(bytes) {
  let place = 0;
  const number = () => {
    let value = 0, scale = 1, byte;
    do { byte = bytes[place++]; value += (byte & 127) * scale; scale *= 128; } while (byte > 127);
    return value;
  };
  while (place < bytes.length) {
    const key = number(), kind = key % 8;
    if (kind === 2) {
      const length = number();
      yield [(key - kind) / 8, bytes.subarray(place, place + length)];
      place += length;
    } else if (kind === 0) number();
    else place += kind === 1 ? 8 : 4;
  }
}

// ---- pixels: what the Python package makes of the same picture

// RGBA -> RGB of [height, width], by Pillow's bilinear filter with antialiasing: rows first, whole levels in between, byte for byte
// (for some tall pictures newer Pillow takes columns first; some values then differ by a level).
function resize({ data, width, height }, [outHeight, outWidth]) {
  const wide = new Uint8Array(height * outWidth * 3), out = new Uint8Array(outHeight * outWidth * 3);
  for (const [x, first, weights] of windowsOf(width, outWidth))
    for (let y = 0; y < height; y++)
      for (let c = 0; c < 3; c++)
        wide[(y * outWidth + x) * 3 + c] = mix(weights, (i) => data[(y * width + first + i) * 4 + c]);
  const row = outWidth * 3;
  for (const [y, first, weights] of windowsOf(height, outHeight))
    for (let x = 0; x < row; x++) out[y * row + x] = mix(weights, (i) => wide[(first + i) * row + x]);
  return out;
}

const BITS = 22; // of the fraction, as in Pillow's Resample.c

function mix(weights, value) {
  let sum = 2 ** (BITS - 1);
  for (let i = 0; i < weights.length; i++) sum += weights[i] * value(i);
  return Math.min(255, Math.floor(sum / 2 ** BITS));
}

function* windowsOf(from, to) {
  const scale = from / to, reach = Math.max(scale, 1);
  for (let x = 0; x < to; x++) {
    const center = (x + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - reach + 0.5)), last = Math.min(from, Math.trunc(center + reach + 0.5));
    const plain = Array.from({ length: last - first }, (_, i) => Math.max(0, 1 - Math.abs((first + i - center + 0.5) * (1 / reach))));
    const total = plain.reduce((a, b) => a + b, 0);
    yield [x, first, plain.map((w) => Math.trunc(0.5 + (w / total) * 2 ** BITS))];
  }
}

// ---- one picture: read, run, keep what has a class

async function read(source) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(source, options);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(bitmap, 0, 0);
  return { bitmap, pixels: pen.getImageData(0, 0, bitmap.width, bitmap.height) };
}

// [{name, class, score, box: [left, top, right, bottom] in pixels}], best first, all scores; milliseconds of each part
async function detect(pixels) {
  const { session, header, size } = network, began = performance.now();
  const input = new ort.Tensor("uint8", resize(pixels, size), [1, ...size, 3]);
  const ready = performance.now();
  const { boxes, scores, labels } = await session.run({ input });
  const done = performance.now();
  const scale = [pixels.width, pixels.height, pixels.width, pixels.height];
  const found = Array.from(scores.data, (score, i) => ({
    class: header.labels.rows.indexOf(Number(labels.data[i])), // -1: a row of the head that names no class
    score,
    box: scale.map((side, k) => boxes.data[4 * i + k] * side),
  })).filter((one) => one.class >= 0);
  for (const one of found) one.name = header.labels.names[one.class];
  return { found, prepare_ms: ready - began, run_ms: done - ready, size: [pixels.height, pixels.width] };
}

// ---- the page

function draw() {
  if (!shown) return;
  const least = Number(at("threshold").value), canvas = at("canvas"), pen = canvas.getContext("2d"), bitmap = shown.picture.bitmap;
  const kept = shown.found.filter((one) => one.score > least);
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  pen.drawImage(bitmap, 0, 0);
  const line = Math.max(2, Math.round(Math.sqrt(bitmap.width * bitmap.height) / 250)), letters = Math.max(12, line * 6);
  pen.font = `600 ${letters}px system-ui, sans-serif`;
  pen.textBaseline = "top";
  for (const one of kept.toReversed()) {
    const [x0, y0, x1, y1] = one.box, text = `${one.name} ${one.score.toFixed(2)}`, wide = pen.measureText(text).width + letters / 2;
    const left = Math.max(0, Math.min(x0, bitmap.width - wide)), top = Math.max(0, y0 - letters * 1.3);
    pen.strokeStyle = pen.fillStyle = COLORS[one.class % COLORS.length];
    pen.lineWidth = line;
    pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
    pen.fillRect(left, top, wide, letters * 1.3);
    pen.fillStyle = luminance(COLORS[one.class % COLORS.length]) > 0.179 ? "#000" : "#fff";
    pen.fillText(text, left + letters / 4, top + letters * 0.15);
  }
  at("found").replaceChildren(...(kept.length ? kept.map(rowOf) : [rowOf(null)]));
}

function rowOf(one) {
  const row = document.createElement("tr");
  const [name, score] = [row.insertCell(), row.insertCell()];
  name.textContent = one ? one.name : "Nothing above the threshold.";
  score.textContent = one ? one.score.toFixed(2) : "";
  if (one) {
    const dot = document.createElement("span");
    dot.className = "dot";
    dot.style.background = COLORS[one.class % COLORS.length];
    name.prepend(dot);
  }
  return row;
}

// relative luminance 0..1 (WCAG 2.1): black letters contrast more above 0.179
function luminance(color) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16) / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

async function show(source) {
  const picture = await read(source), answer = await detect(picture.pixels);
  shown = { picture, found: answer.found };
  draw();
  const threads = ort.env.wasm.numThreads;
  say(`${network.header.config.name}, ${network.size.join(" x ")}, wasm with ${threads} thread${threads > 1 ? "s" : ""}: ` +
    `${answer.run_ms.toFixed(0)} ms, and ${answer.prepare_ms.toFixed(0)} ms to resize.`);
  return answer;
}

async function showAddress(address) {
  return show(await (await fetch(address)).blob());
}

function say(text, failed = false) {
  at("status").textContent = text;
  at("status").className = failed ? "failed" : "";
}

const guarded = (work) => work().catch((problem) => say(problem.message, true));

at("threshold").addEventListener("input", () => { at("shown").textContent = Number(at("threshold").value).toFixed(2); draw(); });
at("file").addEventListener("change", () => guarded(async () => { if (at("file").files[0]) await show(at("file").files[0]); }));

const ready = (async () => {
  network = await load(asked.get("model") || "pico.onnx");
  at("file").disabled = false;
  say("Choose a picture; it stays on this computer.");
  if (asked.get("picture")) await showAddress(asked.get("picture"));
})();
guarded(() => ready);
