// A field to draw in, and a LiteRT model that reads what is drawn.

import { mnistImage, SIZE } from "./mnist.js";

const RUNTIME = "./node_modules/@litertjs/core/wasm/";
const MODEL = "./student.tflite";
// Of the field's width: a large digit's lines become as wide as MNIST's are.
const STROKE = 0.07;
const TIMES_KEPT = 99;

/** What was read last, for whoever imports this module. */
export const reading = {
  pixels: null,
  probabilities: null,
  /** Median milliseconds of the last inferences. */
  milliseconds: null,
};

const element = (id) => document.getElementById(id);
const pad = element("pad");
const ink = pad.getContext("2d", { willReadFrequently: true });
const times = [];
let litert = null;
let model = null;

/** Resolves when the network is there; rejects with what is missing. */
export const ready = start();

/**
 * What the network makes of one image.
 *
 * @param {Float32Array} pixels 28 x 28 values from 0 to 255.
 * @return {Promise<number[]>} The digits' probabilities.
 */
export async function predict(pixels) {
  const before = performance.now();
  // Tensors lie in the memory of WebAssembly, which isn't garbage-collected.
  const input = new litert.Tensor(pixels, [1, SIZE, SIZE, 1]);
  let outputs = [];
  let logits;
  try {
    outputs = await model.run([input]);
    logits = outputs[0].toTypedArray();
  } finally {
    input.delete();
    outputs.forEach((output) => output.delete());
  }
  keepTime(performance.now() - before);
  return softmax(logits);
}

async function start() {
  makeBars();
  listen();
  try {
    await load();
    await read();
  } catch (error) {
    fail(error);
    throw error;
  }
}

async function load() {
  if (typeof WebAssembly !== "object") {
    throw new Error("This browser has no WebAssembly, which the network needs.");
  }
  const bytes = await fetchModel();
  litert = await import("@litertjs/core").catch((error) => {
    throw new Error(
      `The LiteRT runtime is missing (${error.message}). Run: npm install`
    );
  });
  // Rejects with an event where a file is missing.
  await litert.loadLiteRt(RUNTIME).catch((error) => {
    throw new Error(
      `LiteRT's WebAssembly didn't start (${error.message ?? "a file is missing"}).`
    );
  });
  model = await litert.loadAndCompile(bytes, { accelerator: "wasm" });
  // The first run is slower than all others.
  await predict(new Float32Array(SIZE * SIZE));
  times.length = 0;
  element("facts").dataset.size = `${(bytes.length / 1024).toFixed(1)} KiB`;
  showFacts();
}

async function fetchModel() {
  const response = await fetch(MODEL);
  if (!response.ok) {
    throw new Error(
      `There is no model (${MODEL}: ${response.status}). ` +
        "Run: python examples/browser.py"
    );
  }
  return new Uint8Array(await response.arrayBuffer());
}

function fail(error) {
  element("error").textContent = error.message;
  element("error").hidden = false;
  element("facts").textContent = "";
}

function keepTime(milliseconds) {
  times.push(milliseconds);
  if (times.length > TIMES_KEPT) times.shift();
  const sorted = [...times].sort((a, b) => a - b);
  reading.milliseconds = sorted[Math.floor(sorted.length / 2)];
}

function softmax(logits) {
  const highest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - highest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

// Drawing

function listen() {
  let last = null;
  const point = (event) => {
    const field = pad.getBoundingClientRect();
    return [
      ((event.clientX - field.left) * pad.width) / field.width,
      ((event.clientY - field.top) * pad.height) / field.height,
    ];
  };
  const lineTo = (next) => {
    ink.beginPath();
    ink.moveTo(...last);
    ink.lineTo(...next);
    ink.stroke();
    last = next;
  };
  ink.lineWidth = STROKE * pad.width;
  ink.lineCap = "round";
  ink.strokeStyle = "#1c2430";
  pad.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary || event.button) return;
    pad.setPointerCapture(event.pointerId);
    last = point(event);
    lineTo(last);
    readSoon();
  });
  pad.addEventListener("pointermove", (event) => {
    if (!last || !event.isPrimary) return;
    // A browser reports a fast pen once a frame, and here all of its way.
    const events = event.getCoalescedEvents?.() ?? [];
    (events.length ? events : [event]).forEach((e) => lineTo(point(e)));
    readSoon();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    pad.addEventListener(end, (event) => {
      if (event.isPrimary) last = null;
    });
  }
  element("clear").addEventListener("click", clear);
  document.addEventListener("keydown", (event) => {
    if (["Escape", "Delete", "Backspace"].includes(event.key)) clear();
  });
}

function clear() {
  ink.clearRect(0, 0, pad.width, pad.height);
  readSoon();
}

// Reading

let asked = false;
let busy = false;

/** Reads once a frame at most, however many events a pen sends. */
function readSoon() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(async () => {
    asked = false;
    // One inference at a time; what changes meanwhile is read after it.
    if (busy) return readSoon();
    busy = true;
    try {
      await read();
    } catch (error) {
      fail(error);
    } finally {
      busy = false;
    }
  });
}

async function read() {
  const { data } = ink.getImageData(0, 0, pad.width, pad.height);
  const pixels = mnistImage(data, pad.width);
  const probabilities = pixels && model ? await predict(pixels) : null;
  Object.assign(reading, { pixels, probabilities });
  element("hint").hidden = pixels !== null;
  showSeen(pixels);
  showProbabilities(probabilities);
  if (model) showFacts();
}

function showSeen(pixels) {
  const image = new ImageData(SIZE, SIZE);
  image.data.fill(255);
  for (let i = 0; i < SIZE * SIZE; i++) {
    image.data.fill(pixels?.[i] ?? 0, 4 * i, 4 * i + 3);
  }
  element("seen").getContext("2d").putImageData(image, 0, 0);
}

function makeBars() {
  const bars = Array.from({ length: 10 }, (_, digit) => {
    const bar = document.createElement("li");
    bar.innerHTML =
      `<span class="name">${digit}</span>` +
      '<span class="bar" aria-hidden="true"><span></span></span>' +
      '<span class="value"></span>';
    return bar;
  });
  element("bars").replaceChildren(...bars);
}

function showProbabilities(probabilities) {
  const highest = probabilities && Math.max(...probabilities);
  [...element("bars").children].forEach((bar, digit) => {
    const probability = probabilities?.[digit] ?? 0;
    bar.classList.toggle("highest", probability === highest);
    bar.querySelector(".bar > span").style.width = `${100 * probability}%`;
    bar.querySelector(".value").textContent = probabilities
      ? percent(probability)
      : "";
  });
  const digit = probabilities ? `${probabilities.indexOf(highest)}` : "–";
  // Screen readers say what is set here, so it is set when it changes.
  if (element("digit").textContent !== digit) {
    element("digit").textContent = digit;
  }
  element("certainty").textContent = probabilities
    ? `probability ${percent(highest)}`
    : "";
}

function percent(probability) {
  // No network is ever quite sure.
  if (probability > 0.99) return "> 99 %";
  return `${Math.round(100 * probability)} %`;
}

function showFacts() {
  const { size } = element("facts").dataset;
  const time =
    times.length > 0
      ? `one inference: ${reading.milliseconds.toFixed(2)} ms`
      : "ready";
  element("facts").textContent = `Model: ${size} · ${time}`;
}
